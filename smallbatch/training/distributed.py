"""Multi-process runs: start JAX's distributed runtime, and make the same decisions in all processes.

Every process runs the same program on its own devices and reads its own part of each batch. A decision that depends on
a clock, a signal or a file must be the same in all processes, or they would wait in different collectives. Only
the first process writes and prints.
"""

import contextlib
import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from smallbatch.errors import UserError
from smallbatch.runs.progress import log
from smallbatch.training import cloud, sharding
from smallbatch.training.signals import Stop

T = TypeVar("T")
HEARTBEAT_SECS = 30  # JAX ends the run if a process does not respond for this long
EXIT_GRACE_SECS = 5.0  # between a usage error and the end of the process


def initialize(
    coordinator_address: str | None, process_count: int | None, process_id: int | None, timeout_secs: float
) -> None:
    """Connect the processes of a run, before any other use of JAX. Does nothing for a single process.

    Without arguments, JAX detects the processes that Slurm, Open MPI or a TPU slice started.

    Raises UserError for invalid arguments, and for processes that do not connect in time.
    """
    given = (coordinator_address, process_count, process_id)
    if jax.distributed.is_initialized() or (given == (None, None, None) and not is_one_of_several()):
        return
    if coordinator_address is None or process_count is None or process_id is None:
        if given != (None, None, None):
            raise UserError("only some of --coordinator_address, --process_count, --process_id are set; set all three")
    elif not re.fullmatch(r"([^:]+|\[[^]]+\]):\d+", coordinator_address):
        raise UserError(f"--coordinator_address={coordinator_address} is invalid; write HOST:PORT of process 0")
    elif process_id >= process_count:
        raise UserError(
            f"--process_id={process_id} is invalid for --process_count={process_count}; number the processes from 0"
        )
    elif process_count == 1:
        return
    else:
        log(f"process {process_id} of {process_count}: connecting to process 0 at {coordinator_address} ...")
        _wait_for_all(coordinator_address, process_count, process_id, timeout_secs)
        host = coordinator_address.rpartition(":")[0].strip("[]")  # gRPC must not reach it through a proxy
        direct = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy")  # noqa: SIM112 (gRPC's spelling)
        os.environ["no_grpc_proxy"] = ",".join(filter(None, (direct, host)))  # noqa: SIM112
    try:
        jax.distributed.initialize(
            *given, initialization_timeout=int(timeout_secs), heartbeat_timeout_seconds=HEARTBEAT_SECS
        )
    except (ValueError, RuntimeError) as error:
        if coordinator_address is not None:
            raise
        raise UserError(
            f"JAX cannot find the processes of this run ({error}); give --coordinator_address, --process_count and "
            "--process_id"
        ) from error
    Stop().__enter__()  # until the process ends, since JAX has installed its own SIGTERM handler


def is_one_of_several() -> bool:
    """Return whether Slurm, Open MPI or a TPU slice started this process as one of several."""
    env = os.environ
    hosts = env.get("TPU_WORKER_HOSTNAMES")  # set in Kubernetes
    if hosts is None and env.get("TPU_ML_PLATFORM") == "JAX":  # JAX sets it on a TPU host
        with contextlib.suppress(OSError):
            hosts = cloud.read_metadata("attributes/worker-network-endpoints")
    counts = (
        env.get("SLURM_NTASKS") if "SLURM_STEP_NODELIST" in env else None,
        env.get("OMPI_COMM_WORLD_SIZE"),
        env.get("MEGASCALE_NUM_SLICES"),
    )
    return "," in (hosts or "") or any(int(count or 1) > 1 for count in counts)


def _wait_for_all(address: str, process_count: int, process_id: int, timeout_secs: float) -> None:
    """Wait until all processes have connected to process 0.

    JAX itself aborts without reporting which processes are missing.

    Raises:
        UserError: a process did not connect in time. In process 0 the error lists the missing processes.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout_secs
    if process_id == 0:
        return _accept_all(int(port), process_count, deadline)
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), 5) as connection:
            connection.settimeout(timeout_secs + 5)
            connection.sendall(f"{process_id}\n".encode())
            if connection.recv(1):
                return
            raise UserError("not all processes have started; see the missing ones in the output of process 0")
        time.sleep(0.2)  # process 0 is not listening yet
    raise UserError(f"process 0 cannot be reached at {address}; start it, or correct --coordinator_address")


def _accept_all(port: int, process_count: int, deadline: float) -> None:
    """Wait until each other process has connected and sent its number, then send each a byte."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    missing, connections = set(range(1, process_count)), []
    with contextlib.ExitStack() as sockets:
        try:
            server = socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6)
        except OSError as error:
            raise UserError(f"cannot listen on port {port} ({error.strerror}); change --coordinator_address") from error
        sockets.enter_context(server)
        while missing:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            index = None
            with contextlib.suppress(OSError, ValueError):  # a timeout, or not a process of this run
                connection = sockets.enter_context(server.accept()[0])
                connection.settimeout(5)
                index = int(connection.makefile().readline())
                connections.append(connection)
            if index is not None and index not in missing:
                raise UserError(f"--process_id={index} is given twice; number the processes from 0 and restart all")
            missing.discard(index)
            if missing and time.monotonic() >= deadline:
                names = ", ".join(map(str, sorted(missing)))
                raise UserError(f"process {names} of {process_count} did not connect; see its output, and restart all")
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(b"1")
                connection.recv(1)  # the other end closes first, so that JAX can bind the port immediately


def is_first() -> bool:
    """Return whether this is the process that writes and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def only_first_prints() -> Iterator[None]:
    """Discard the output of all processes except the first."""
    with contextlib.ExitStack() as redirected:
        if not is_first():
            null = redirected.enter_context(open(os.devnull, "w"))
            redirected.enter_context(contextlib.redirect_stdout(null))
            redirected.enter_context(contextlib.redirect_stderr(null))
        yield


def broadcast_from_first(f: Callable[[], Any]) -> Any:
    """Call f in the first process; return its JSON value, or raise its UserError, in all."""
    if jax.process_count() == 1:
        return f()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome = {"value": f()}
        except UserError as error:
            outcome = {"error": str(error)}
    text = json.dumps(outcome).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.frombuffer(text[:length].ljust(length), np.uint8)
    outcome = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes())
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["value"]


def all_processes(condition: bool) -> bool:
    """Return whether a condition holds in every process. Every process must call this."""
    return (
        condition if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.bool_(condition))))
    )


def raise_in_all(f: Callable[[], T]) -> T:
    """Return f(). If it fails in any process, raise in all of them."""
    value, error = None, None
    try:
        value = f()
    except Exception as caught:
        error = caught
    if all_processes(error is None):
        return value  # pyright: ignore[reportReturnType]
    raise error or ValueError("it failed in another process")


def check_same(text: str, name: str) -> None:
    """Raise UserError in every process if `text` is not the same in all. name: what it describes."""
    if not all_processes(broadcast_from_first(lambda: text) == text):
        raise UserError(
            f"process {jax.process_index()} of {jax.process_count()}: {name} differs between processes; start all with "
            "the same command and the same files"
        )


class Agreement:
    """Combine flags over processes without blocking: a flag that is set in one call takes effect one call later."""

    def __init__(self) -> None:
        self._pending: jax.Array | None = None
        if jax.process_count() > 1:
            mesh = sharding.processes_mesh()
            self._sharding = sharding.processes_sharding(mesh)
            self._any = jax.jit(lambda flags_PxN: flags_PxN.any(0), out_shardings=sharding.replicated(mesh))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether any process had set it at the previous call; for one process, the flags."""
        if jax.process_count() == 1:
            return flags
        previous, own = self._pending, np.array([flags])
        shape = (jax.process_count(), len(flags))
        self._pending = self._any(jax.make_array_from_callback(shape, self._sharding, lambda _: own))
        return (False,) * len(flags) if previous is None else tuple(bool(flag) for flag in np.asarray(previous))


def is_peer_failure(error: Exception) -> bool:
    """Return whether a library's error means that another process of the run has ended."""
    words = "gloo|nccl|heartbeat|coordination ?service|connection reset|closed by peer"
    return jax.distributed.is_initialized() and re.search(words, str(error), re.IGNORECASE) is not None


def exit_on_error(f: Callable[[], int]) -> int:
    """Return f(). If it fails in a run of several processes, end this process at once, with exit code 2 or 1.

    A normal exit would wait for the other processes, which wait for this one in a collective.
    """
    try:
        return f()
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        elif is_peer_failure(error):
            reason = str(error).splitlines()[0]
            print(f"error: another process of this run has ended ({reason}); restart all of them", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        if isinstance(error, UserError):  # the others, which depend on process 0, can report the same error
            time.sleep(EXIT_GRACE_SECS)
        os._exit(2 if isinstance(error, UserError) else 1)
