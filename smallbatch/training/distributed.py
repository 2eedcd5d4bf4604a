"""One run in several processes: how they find each other, what they agree on, and what the first alone does.

Every process runs the same program on its own devices and reads its own part of each batch. Decisions that a clock, a
signal or a file takes are taken together, or the processes would wait for each other in different places.
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
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np

from smallbatch.errors import UserError
from smallbatch.training import cloud, sharding
from smallbatch.training.signals import Stop

T = TypeVar("T")
TPU_PORT = 8482  # as JAX has it for slices
HEARTBEAT_SECS = 30  # a process that is not heard of for so long is lost
RETRY_SECS = 0.2
CALL_SECS = 5.0  # that a process which has come may take to say who it is


@dataclass(frozen=True)
class Place:
    """Which of the processes of a run this is, and where the first one can be reached."""

    coordinator_address: str  # HOST:PORT
    process_count: int
    process_id: int


def place(coordinator_address: str | None, process_count: int | None, process_id: int | None) -> Place | None:
    """Return the place that was given, or that Slurm or a TPU slice tells; None for one process.

    The processes of an indexed Kubernetes job know their number, but neither how many they are nor where the first is.

    Raises UserError if only a part was given.
    """
    if coordinator_address is not None and process_id is None and "JOB_COMPLETION_INDEX" in os.environ:
        process_id = int(os.environ["JOB_COMPLETION_INDEX"])
    given = (coordinator_address, process_count, process_id)
    if given != (None, None, None):
        if coordinator_address is None or process_count is None or process_id is None:
            raise UserError("--coordinator_address, --process_count and --process_id are given together or not at all")
        if not re.fullmatch(r"([^:]+|\[[^]]+\]):\d+", coordinator_address):
            raise UserError(f"--coordinator_address={coordinator_address}: write HOST:PORT of process 0")
        if process_id >= process_count:
            raise UserError(f"--process_id={process_id}: the {process_count} processes are numbered from 0")
        return Place(coordinator_address, process_count, process_id) if process_count > 1 else None
    known = os.environ
    if int(known.get("SLURM_NTASKS", 1)) > 1 and {"SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_JOB_ID"} <= set(known):
        first = re.match(r"([^,\[]+)(?:\[(\d+))?", known["SLURM_STEP_NODELIST"])
        assert first is not None
        port = 61440 + int(known["SLURM_JOB_ID"]) % 4096  # jobs on one node get different ones, as a rule
        host = first[1] + (first[2] or "")
        return Place(f"{host}:{port}", int(known["SLURM_NTASKS"]), int(known["SLURM_PROCID"]))
    return _place_in_tpu_slice()


def _place_in_tpu_slice() -> Place | None:
    """Return what the hosts of one or several TPU slices are told: by variables in Kubernetes, else by the cloud."""
    told = dict(os.environ)
    if "TPU_WORKER_HOSTNAMES" not in told and told.get("TPU_ML_PLATFORM") == "JAX":  # set by JAX where it finds a TPU
        with contextlib.suppress(OSError):  # not a machine of Google's cloud, or not of a slice
            told["TPU_WORKER_HOSTNAMES"] = cloud.ask("attributes/worker-network-endpoints")
            told["TPU_WORKER_ID"] = cloud.ask("attributes/agent-worker-number")
            told = dict(re.findall(r"^(\w+): '?(.*?)'?$", cloud.ask("attributes/tpu-env"), re.MULTILINE)) | told
    names = told.get("TPU_WORKER_HOSTNAMES", "").split(",")
    count = len(names) * int(told.get("MEGASCALE_NUM_SLICES") or 1)
    if count == 1:
        return None
    number = told.get("TPU_WORKER_ID", "")
    if not number.isdecimal():
        raise UserError(f"TPU_WORKER_ID is {number!r} on one of {count} hosts; set it to the host's number, from 0")
    # A name is HOST, or NAME:NUMBER:HOST; the first host of several slices is HOST or HOST:PORT.
    first = (told.get("MEGASCALE_COORDINATOR_ADDRESS") or names[0].rpartition(":")[2]).partition(":")[0]
    number_of_all = int(number) + int(told.get("MEGASCALE_SLICE_ID") or 0) * len(names)
    return Place(f"{first}:{TPU_PORT}", count, number_of_all)


def join(where: Place | None, what: str, timeout_secs: float, log: Callable[[str], None]) -> None:
    """Bring the processes of a run together, before JAX is used. Does nothing for a process alone.

    what: what they must have in common, such as the fingerprint of the config.

    Raises:
        UserError: some have not come in time, or have come with something else; it says which.
    """
    if where is None or jax.distributed.is_initialized():
        return
    log(f"process {where.process_id} of {where.process_count}: meeting the others at {where.coordinator_address} ...")
    roll_call(where, what, timeout_secs)
    _leave_out_proxy(where)
    jax.distributed.initialize(
        where.coordinator_address,
        where.process_count,
        where.process_id,
        initialization_timeout=int(timeout_secs),
        heartbeat_timeout_seconds=HEARTBEAT_SECS,
    )
    # To the end of the process: JAX takes SIGTERM for itself here, and what comes before and after the loop is long.
    Stop().__enter__()


def _leave_out_proxy(where: Place) -> None:
    """Have processes speak to each other directly, as in the roll call, and not by a proxy for the web."""
    known = os.environ
    if {"grpc_proxy", "http_proxy", "https_proxy"} & set(known):
        ours = "no_grpc_proxy"  # as gRPC spells it; it reads the other only where this is not set
        direct = [known.get(ours) or known.get("no_proxy"), where.coordinator_address.rpartition(":")[0]]
        known[ours] = ",".join(filter(None, direct))


def roll_call(where: Place, what: str, timeout_secs: float) -> None:
    """Return when all processes are there, with the same `what`. Raises UserError that names those that are not.

    JAX itself ends a process that waits for another in vain, without a word about which.
    """
    deadline = time.monotonic() + timeout_secs
    host, _, port = where.coordinator_address.rpartition(":")
    host = host.strip("[]")
    if where.process_id == 0:
        problem = _call(int(port), where, what, deadline)
    else:
        problem = _answer(host, int(port), where, what, deadline)
    if problem:
        raise UserError(problem)


def _call(port: int, where: Place, what: str, deadline: float) -> str:
    """Wait for all the others, tell them how it went, and return that: "" where all are there."""
    try:
        server = _server(port)
    except OSError as error:
        return f"process 0 cannot listen on port {port} ({error.strerror}); choose another --coordinator_address"
    missing, problem, others = set(range(1, where.process_count)), "", []
    with contextlib.ExitStack() as open_sockets:
        open_sockets.enter_context(server)
        while missing and not problem:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection = open_sockets.enter_context(server.accept()[0])
                connection.settimeout(CALL_SECS)
                other = json.loads(_line(connection))
                index, count, brought = other["process_id"], other["process_count"], other["what"]
            except (OSError, ValueError, TypeError, KeyError):  # nobody, or not one of ours
                if time.monotonic() >= deadline:
                    names = ", ".join(map(str, sorted(missing)))
                    problem = (
                        f"process {names} of {where.process_count} did not come to {where.coordinator_address} in "
                        "time; look at its output, and start all again"
                    )
                continue
            others.append(connection)
            if (count, brought) != (where.process_count, what):
                problem = f"process {index} was started with other settings than process 0; give all the same"
            elif index not in missing:
                problem = f"two processes say that they are number {index}; give each its own --process_id"
            missing.discard(index)
        for connection in others:
            with contextlib.suppress(OSError):
                connection.sendall((json.dumps(problem) + "\n").encode())
                connection.recv(1)  # the other end closes first, so that the port is free at once
    return problem


def _server(port: int) -> socket.socket:
    """Listen on all of this machine's addresses, of either kind if it has both."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # the kind is known, but switched off
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _line(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as file:
        return file.readline()


def _answer(host: str, port: int, where: Place, what: str, deadline: float) -> str:
    """Go to process 0 and return what it says."""
    about = {"process_id": where.process_id, "process_count": where.process_count, "what": what}
    while time.monotonic() < deadline + CALL_SECS:  # process 0, which knows more, is to be the first to give up
        try:
            with socket.create_connection((host, port), timeout=CALL_SECS) as connection:
                connection.settimeout(max(1.0, deadline + CALL_SECS - time.monotonic()))
                connection.sendall((json.dumps(about) + "\n").encode())
                return json.loads(_line(connection))
        except (OSError, ValueError):  # not there yet
            time.sleep(RETRY_SECS)
    return f"process 0 cannot be reached at {where.coordinator_address}; start it, or correct --coordinator_address"


@contextlib.contextmanager
def only_first_speaks(where: Place | None) -> Iterator[None]:
    """Silence all processes but the first."""
    quiet = where is not None and where.process_id > 0
    with contextlib.ExitStack() as silence:
        if quiet:
            nowhere = silence.enter_context(open(os.devnull, "w"))
            silence.enter_context(contextlib.redirect_stdout(nowhere))
            silence.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def is_first() -> bool:
    """Tell whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def from_first(f: Callable[[], Any]) -> Any:
    """Call f in the first process and return in all what it returns, a JSON value; a UserError is raised in all."""
    if jax.process_count() == 1:
        return f()
    from jax.experimental.multihost_utils import broadcast_one_to_all

    said: dict[str, Any] = {}
    if is_first():
        try:
            said = {"value": f()}
        except UserError as error:
            said = {"error": str(error)}
    text = json.dumps(said).encode()
    length = int(broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(length, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)[:length]
    said = json.loads(np.asarray(broadcast_one_to_all(padded)).astype(np.uint8).tobytes())
    if "error" in said:
        raise UserError(said["error"])
    return said["value"]


def all_of(mine: bool) -> bool:
    """Tell whether it is true in every process; all must ask."""
    if jax.process_count() == 1:
        return mine
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.all(process_allgather(np.bool_(mine))))


def together(f: Callable[[], T]) -> T:
    """Return f(), which may fail in one process alone, where it has failed in none; else raise in all."""
    value: Any = None
    error = None
    try:
        value = f()
    except Exception as own:
        error = own
    if all_of(error is None):
        return value
    raise error or ValueError("another process says so")


def check_same(mine: str, what: str) -> None:
    """Raise UserError, in every process, if not all have the same text; `what` says what it is of."""
    if not all_of(from_first(lambda: mine) == mine):
        raise UserError(
            f"process {jax.process_index()} of {jax.process_count()}: {what} is not the same in all processes; give "
            "all the same files"
        )


class Agreement:
    """Brings what each process wants to all of them without waiting: what is asked for now is granted a call later."""

    def __init__(self) -> None:
        self._under_way: jax.Array | None = None
        if jax.process_count() > 1:
            mesh = sharding.processes_mesh()
            self._split = sharding.processes_sharding(mesh)
            self._any = jax.jit(lambda x_PxW: x_PxW.any(0), out_shardings=sharding.replicated(mesh))

    def any(self, *wishes: bool) -> tuple[bool, ...]:
        """Return, for every wish, whether any process had it at the call before; a process alone has its wishes."""
        if jax.process_count() == 1:
            return wishes
        before, shape = self._under_way, (jax.process_count(), len(wishes))
        mine = np.array([wishes])
        self._under_way = self._any(jax.make_array_from_callback(shape, self._split, lambda _: mine))
        return (False,) * len(wishes) if before is None else tuple(bool(x) for x in np.asarray(before))


def is_loss(error: Exception) -> bool:
    """Tell whether an error of a library says that another process is gone."""
    words = "gloo|nccl|heartbeat|coordination ?service|connection reset|closed by peer"
    return jax.distributed.is_initialized() and re.search(words, str(error), re.IGNORECASE) is not None


def ending_together(f: Callable[[], int]) -> int:
    """Return f(); where there are several processes, one in which it fails ends at once, so that the others hear of it.

    At its usual end, JAX would wait for the others, and they for it. The exit code is 2 for a mistake of the person
    and 1 for all else, as a process alone has it.
    """
    try:
        return f()
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        code = 1
        if isinstance(error, UserError):
            code = 2
            print(f"error: {error}", file=sys.stderr)
        elif is_loss(error):
            reason = str(error).splitlines()[0]
            gone = f"error: another process of this run is gone ({reason}); start all again, with the same command"
            print(gone, file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
