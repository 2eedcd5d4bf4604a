"""The engine for many machines: a running Ray cluster gives each cell to a node that has room.

Ray carries a few strings to a node and one back, and nothing is lost with them: what a cell has reached is read from
the sweep directory, on a file system that all nodes see. So a cell whose node was lost goes on elsewhere, from its
checkpoint, as soon as the claim of the lost node is free.
"""

import contextlib
import fcntl
import functools
import itertools
import json
import logging
import os
import random
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ray
import ray.exceptions

from smallbatch.errors import UserError
from smallbatch.grid import worker
from smallbatch.grid.cells import Cell
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.grid.tasks import Task, Waiting
from smallbatch.training.signals import Stop

WAIT_SECS = 1.0
SAVE_SECS = 120.0  # for cells to save what they are at


class RayEngine:
    """Runs tasks on the nodes of a Ray cluster; holds nothing that is not in the sweep directory."""

    def __init__(
        self, directory: SweepDirectory, keep_checkpoints: bool = False, devices: int = 1, address: str | None = None
    ):
        """Connect to a cluster.

        devices: of a run: TPU chips where the cluster has any, else GPUs, else CPU cores.
        address: HOST:PORT of its head; None: RAY_ADDRESS, or the cluster that this machine is part of.

        Raises:
            UserError: there is no such cluster, or no node of it has so many devices.
        """
        self._directory, self._keep_checkpoints, self._devices = directory, keep_checkpoints, devices
        _connect(address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._kind = next(kind for kind in ("TPU", "GPU", "CPU") if kind == "CPU" or any(kind in n for n in nodes))
        if not any(node.get(self._kind, 0) >= devices for node in nodes):
            raise UserError(f"no node of the Ray cluster has {devices} {self._kind} for a run; start nodes that have")
        self._remote = ray.remote(**self._options())(_run_cell)

    @property
    def platform(self) -> str:
        """Return what JAX calls the devices of a run."""
        return self._kind.lower()

    @property
    def size(self) -> int:
        """Return how many cells run at once; nodes come and go."""
        return max(1, int(ray.cluster_resources().get(self._kind, 0) // self._devices))

    def run(self, tasks: list[Task], on_change: Callable[[set[str]], None], stop: Callable[[], bool]) -> None:
        """Run tasks until all have ended, or until `stop()` says so (see tasks.Engine)."""
        waiting = Waiting(tasks, self._directory)
        under_way: dict[ray.ObjectRef, Task] = {}
        try:
            while not stop():
                on_change({task.cell.id for task in under_way.values()})
                # No more than run at once: a task that waits in Ray could not be told from one that runs.
                due = waiting.due()
                for task in due[: max(0, self.size - len(under_way))]:
                    under_way[self._remote.remote(self._order(task))] = waiting.take(task)
                if not under_way:
                    return
                ended, _ = ray.wait(list(under_way), timeout=WAIT_SECS)
                for ref in ended:
                    waiting.answered(under_way.pop(ref), _answer(ref))
        finally:
            _end(list(under_way))

    def _options(self) -> dict:
        # Ray's own retries are off: it repeats what ran out of memory for ever, and does not know what made progress.
        options: dict = {"max_retries": 0}
        if self._kind == "CPU":
            return options | {"num_cpus": self._devices}  # processes stay, and with them what they have compiled
        # A process that JAX runs in keeps its accelerator, so the next cell needs another process.
        options |= {"num_cpus": 1, "max_calls": 1}
        return options | ({"num_gpus": self._devices} if self._kind == "GPU" else {"resources": {"TPU": self._devices}})

    def _order(self, task: Task) -> str:
        order = {
            "directory": str(self._directory.path.absolute()),
            "id": task.cell.id,
            "until_tokens": task.until_tokens,
            "keep_checkpoints": self._keep_checkpoints,
            "cores": self._devices if self._kind == "CPU" else None,
            "cwd": os.getcwd(),
        }
        return json.dumps(order)


def _connect(address: str | None) -> None:
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except (OSError, RuntimeError, ValueError) as error:
        where = "here" if address == "auto" else f"at {address}"
        why = str(error).strip().partition("\n")[0]  # versions that differ, say
        raise UserError(
            f"there is no Ray cluster {where}, or none that lets us in ({why}); start one with `ray start --head` or "
            "the scripts in launch/, and name it with --ray_address=HOST:PORT"
        ) from error


def _answer(ref: ray.ObjectRef) -> dict:
    """Return a task's answer, or one that tells how it was lost."""
    try:
        return json.loads(ray.get(ref))
    except ray.exceptions.RayError as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        # The traceback of an error on the node ends with what it was; other errors begin with it.
        about = lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0].strip()
        return {"status": "failed", "error": f"{type(error).__name__}: {about}", "again": True}


def _end(under_way: list[ray.ObjectRef]) -> None:
    """Let the cells under way save what they are at, and wait for them."""
    if not under_way:
        return
    for ref in under_way:
        ray.cancel(ref)  # Ctrl-C for the worker: the trainer saves
    _, left = ray.wait(under_way, num_returns=len(under_way), timeout=SAVE_SECS)
    for ref in left:
        ray.cancel(ref, force=True)


def _run_cell(order: str) -> str:
    """Run a cell on a node, and return `worker.attempt`'s answer as JSON."""
    # Hears of a stop until the trainer does: Ray raises Ctrl-C once, and such an exception may get lost in an import.
    with Stop():
        asked = json.loads(order)
        if asked["cores"]:
            _keep_to_cores(asked["cores"])
        directory = SweepDirectory(Path(asked["directory"]))
        try:
            os.chdir(asked["cwd"])  # paths in a config may be relative
            cell = _cells(directory.path)[asked["id"]]
        except (OSError, UserError) as error:
            raise RuntimeError(f"{socket.gethostname()} does not see what the sweep sees: {error}") from error
        return json.dumps(worker.attempt(directory, cell, asked["until_tokens"], asked["keep_checkpoints"]))


@functools.cache
def _cells(path: Path) -> dict[str, Cell]:
    return {cell.id: cell for cell in SweepDirectory(path).read_grid()}


@functools.cache
def _keep_to_cores(count: int) -> None:
    """Keep this process, for as long as it lives, to cores that no other worker of this machine has taken.

    Before JAX starts: it makes as many devices and threads as there are cores to use, and the order of its sums, so
    the last bit of a loss, depends on them.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = sorted(os.sched_getaffinity(0))
    count = min(count, len(allowed))
    taken: list[int] = []
    deadline = time.monotonic() + 5.0  # a worker that was told to go may be at it still
    while True:
        free = (core for core in allowed if core not in taken and _take(core))
        taken += list(itertools.islice(free, count - len(taken)))  # lazily: what is asked for is kept
        if len(taken) == count or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    others = [core for core in allowed if core not in taken]
    os.sched_setaffinity(0, [*taken, *random.sample(others, count - len(taken))])


def _take(core: int) -> bool:
    """Take a core if no other worker has it, by a lock that the system drops when this process ends."""
    directory = Path(tempfile.gettempdir()) / f"smallbatch-cores-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(directory / str(core), os.O_RDWR | os.O_CREAT, 0o600)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    os.close(lock)
    return False
