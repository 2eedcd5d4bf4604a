"""The engine for many machines: a running Ray cluster assigns each cell to a node with free devices.

Ray transfers only the task and its outcome. All other state is in the sweep directory, on a file system that all nodes
share. When a node is lost, its cell resumes on another node from its checkpoint, as soon as its lock is stale.
"""

import contextlib
import fcntl
import functools
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
from smallbatch.grid.tasks import Task, TaskQueue
from smallbatch.training.signals import Stop

WAIT_SECS = 1.0
SAVE_SECS = 120.0  # for the running cells to save
CORE_SECS = 5.0  # for a worker that is ending to free its cores


class RayEngine:
    """Runs tasks on the nodes of a Ray cluster."""

    def __init__(
        self, directory: SweepDirectory, keep_checkpoints: bool = False, devices: int = 1, address: str | None = None
    ):
        """Connect to a cluster.

        devices: per run: TPU chips if the cluster has any, else GPUs, else CPU cores.
        address: HOST:PORT of its head; None: RAY_ADDRESS, or the cluster that this machine is part of.

        Raises UserError if there is no such cluster, or no node with enough devices.
        """
        self._directory, self._keep_checkpoints, self._devices = directory, keep_checkpoints, devices
        _connect(address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._kind = next((kind for kind in ("TPU", "GPU") if any(kind in node for node in nodes)), "CPU")
        if not any(node.get(self._kind, 0) >= devices for node in nodes):
            raise UserError(f"no node of the Ray cluster has the {devices} {self._kind} of a run; start larger nodes")
        # Ray's own retries are off: it would retry without limit, and only `Failures` checks for progress.
        options: dict = {"max_retries": 0}
        if self._kind == "CPU":
            options |= {"num_cpus": devices}  # the process is reused, with the programs that it has compiled
        else:
            # JAX keeps the accelerator until its process ends, so each cell gets a new process.
            options |= {"num_cpus": 1, "max_calls": 1}
            options |= {"num_gpus": devices} if self._kind == "GPU" else {"resources": {"TPU": devices}}
        self._remote = ray.remote(**options)(_run_cell)

    @property
    def platform(self) -> str:
        """Return JAX's name for the devices of a run."""
        return self._kind.lower()

    @property
    def size(self) -> int:
        """Return the number of cells that run at once; it changes as nodes join and leave."""
        return max(1, int(ray.cluster_resources().get(self._kind, 0) // self._devices))

    def run(self, tasks: list[Task], on_change: Callable[[set[str]], None], stop: Callable[[], bool]) -> None:
        """Run tasks until all have ended, or until `stop()` returns True (see tasks.Engine)."""
        waiting = TaskQueue(tasks, self._directory)
        running: dict[ray.ObjectRef, Task] = {}
        try:
            while not stop():
                on_change({task.cell.id for task in running.values()})
                # Submit no more than can run, since a task that Ray queues looks like one that runs.
                for task in waiting.due()[: max(0, self.size - len(running))]:
                    running[self._remote.remote(self._order(task))] = waiting.take(task)
                if not running:
                    return
                ended, _ = ray.wait(list(running), timeout=WAIT_SECS)
                for ref in ended:
                    waiting.finish(running.pop(ref), _outcome(ref))
        finally:
            for ref in running:
                ray.cancel(ref)  # raises KeyboardInterrupt in the worker: the trainer saves
            left = ray.wait(list(running), num_returns=len(running), timeout=SAVE_SECS)[1] if running else []
            for ref in left:
                ray.cancel(ref, force=True)

    def _order(self, task: Task) -> dict:
        return {
            "directory": str(self._directory.path.absolute()),
            "id": task.cell.id,
            "until_tokens": task.until_tokens,
            "keep_checkpoints": self._keep_checkpoints,
            "cores": self._devices if self._kind == "CPU" else None,
            "cwd": os.getcwd(),
        }


def _connect(address: str | None) -> None:
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except (OSError, RuntimeError, ValueError) as error:
        where = "here" if address == "auto" else f"at {address}"
        reason = str(error).strip().partition("\n")[0]  # such as different versions of Ray
        raise UserError(
            f"there is no Ray cluster {where}, or it refused the connection ({reason}); start one with "
            "`ray start --head` or the scripts in launch/, and set --ray_address=HOST:PORT"
        ) from error


def _outcome(ref: ray.ObjectRef) -> dict:
    """Return the outcome of a task, or a failure that describes how it was lost."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
        # The traceback of an error on the node ends with the error; other messages begin with it.
        reason = lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0]
        return {"status": "failed", "error": f"{type(error).__name__}: {reason}", "again": True}


def _run_cell(order: dict) -> dict:
    """Run a cell on a node; return the outcome of `worker.attempt`."""
    # Ray raises KeyboardInterrupt once, and an import could swallow it, so a Stop records it until the trainer starts.
    with Stop():
        if order["cores"]:
            _reserve_cores(order["cores"])
        directory = SweepDirectory(Path(order["directory"]))
        try:
            os.chdir(order["cwd"])  # paths in a config may be relative
            cell = _cells(directory.path)[order["id"]]
        except (OSError, UserError) as error:
            raise RuntimeError(f"{socket.gethostname()} cannot read the sweep directory: {error}") from error
        return worker.attempt(directory, cell, order["until_tokens"], order["keep_checkpoints"])


@functools.cache
def _cells(path: Path) -> dict[str, Cell]:
    return {cell.id: cell for cell in SweepDirectory(path).read_grid()}


@functools.cache
def _reserve_cores(count: int) -> None:
    """Pin this process, before JAX starts, to cores that no other worker of this machine has reserved.

    JAX makes as many devices and threads as there are cores, and the last bit of a loss depends on their number.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = sorted(os.sched_getaffinity(0))
    count, reserved = min(count, len(allowed)), set()
    deadline = time.monotonic() + CORE_SECS
    while len(reserved) < count and time.monotonic() < deadline:
        for core in allowed:
            if len(reserved) < count and core not in reserved and _reserve(core):
                reserved.add(core)
        time.sleep(0.1 * (len(reserved) < count))
    others = [core for core in allowed if core not in reserved]
    os.sched_setaffinity(0, [*reserved, *random.sample(others, count - len(reserved))])


def _reserve(core: int) -> bool:
    """Reserve a core until this process ends; return False if another worker has reserved it."""
    directory = Path(tempfile.gettempdir()) / f"smallbatch-cores-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(directory / str(core), os.O_RDWR | os.O_CREAT, 0o600)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    os.close(lock)
    return False
