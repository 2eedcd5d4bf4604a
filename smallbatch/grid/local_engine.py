"""The engine for one machine without an accelerator: a worker process a core, fed from here, watched and replaced.

The small models of a grid run best on a core each: the cores have nothing to wait for. A worker gets cells of a program
that it has compiled already as long as there are any, so each program is compiled once, or once a core towards the end.
"""

import collections
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from smallbatch.errors import UserError
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.grid.tasks import Task, Waiting


@dataclass
class _Worker:
    process: subprocess.Popen
    cores: str
    log: Path
    task: Task | None = None
    programs: set[str] = field(default_factory=set)


def core_groups(cores_per_worker: int, workers: int | None = None) -> list[list[int]]:
    """Return the cores of each worker; all of them for one worker if there are fewer than it asks for.

    workers: how many, None for as many as there are cores for. Raises UserError for more than that, or none.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    groups = [cores[i : i + cores_per_worker] for i in range(0, len(cores), cores_per_worker)]
    groups = [group for group in groups if len(group) == cores_per_worker] or [cores]
    if workers is not None and not 1 <= workers <= len(groups):
        raise UserError(
            f"--workers={workers}: the {len(cores)} cores here are for 1 to {len(groups)} workers, "
            f"{cores_per_worker} core{'s' * (cores_per_worker != 1)} each; choose among these, or leave it out"
        )
    return groups[:workers]


class LocalEngine:
    """Runs tasks on worker processes; holds nothing that is not in the sweep directory."""

    def __init__(self, directory: SweepDirectory, core_groups: list[list[int]], keep_checkpoints: bool = False):
        self._directory, self._keep_checkpoints = directory, keep_checkpoints
        self._cores = [",".join(map(str, group)) for group in core_groups]
        self._events: queue.Queue[tuple[_Worker, dict | None]] = queue.Queue()
        self._workers: list[_Worker] = []

    @property
    def size(self) -> int:
        """Return how many workers there are."""
        return len(self._cores)

    def run(self, tasks: list[Task], on_change: Callable[[set[str]], None], stop: Callable[[], bool]) -> None:
        """Run tasks until all have ended, or until `stop()` says so (see tasks.Engine)."""
        waiting = Waiting(tasks, self._directory)
        self._events = queue.Queue()  # not to hear of the workers of a run before
        try:
            for cores in self._cores[: len(tasks)]:
                self._start(cores)
            while not stop():
                on_change({worker.task.cell.id for worker in self._workers if worker.task})
                for worker in self._workers:
                    if worker.task is None and (due := waiting.due()):
                        self._give(worker, waiting.take(self._choose(worker, due)))
                if not any(worker.task for worker in self._workers):
                    return
                try:
                    worker, answer = self._events.get(timeout=1.0)
                except queue.Empty:
                    continue
                self._take(worker, answer, waiting)
        finally:
            self._end()

    def _start(self, cores: str) -> None:
        pinned = cores if hasattr(os, "sched_setaffinity") else ""
        keep = "keep" if self._keep_checkpoints else "drop"
        log = self._log(cores)
        # A session of its own: Ctrl-C is for the sweep, which then tells its workers.
        with log.open("ab") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "smallbatch.grid.worker", str(self._directory.path), pinned, keep],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
        worker = _Worker(process, cores, log)
        self._workers.append(worker)
        threading.Thread(target=_listen, args=(worker, self._events), daemon=True).start()

    def _choose(self, worker: _Worker, due: list[Task]) -> Task:
        """Return a task whose program this worker has, else one that no other has, else the program with most left."""
        left = collections.Counter(task.program for task in due)
        elsewhere = {program for other in self._workers if other is not worker for program in other.programs}
        rank = lambda program: (program in worker.programs, program not in elsewhere, left[program])
        program = max(left, key=rank)
        return next(task for task in due if task.program == program)

    def _give(self, worker: _Worker, task: Task) -> None:
        worker.task = task
        worker.programs.add(task.program)
        assert worker.process.stdin is not None
        order = json.dumps({"id": task.cell.id, "until_tokens": task.until_tokens})
        with contextlib.suppress(OSError):  # it died: its end is on the way as an event
            print(order, file=worker.process.stdin, flush=True)

    def _take(self, worker: _Worker, answer: dict | None, waiting: Waiting) -> None:
        task, worker.task = worker.task, None
        if answer is None:
            self._workers.remove(worker)
            _close_orders(worker)
            error = _death(worker)
            if task is not None or waiting.due():
                self._start(worker.cores)
            answer = {"status": "failed", "error": error, "again": True}
        if task is not None:
            waiting.answered(task, answer)

    def _end(self) -> None:
        """Let the workers save what they are at, and wait for them."""
        for worker in self._workers:
            _close_orders(worker)
        for worker in self._workers:
            try:
                worker.process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                os.killpg(worker.process.pid, signal.SIGKILL)
        self._workers.clear()
        for log in map(self._log, self._cores):
            if log.exists() and not log.stat().st_size:
                log.unlink()

    def _log(self, cores: str) -> Path:
        """Return a file of a worker of this process: other sweeps may be at work on the directory."""
        return self._directory.worker_log(f"{socket.gethostname()}-{os.getpid()}-{cores.partition(',')[0]}")


def _listen(worker: _Worker, events: queue.Queue) -> None:
    assert worker.process.stdout is not None
    with worker.process.stdout as answers:
        for line in answers:
            events.put((worker, json.loads(line)))
    events.put((worker, None))


def _close_orders(worker: _Worker) -> None:
    assert worker.process.stdin is not None
    with contextlib.suppress(OSError):  # it died before it could take the last
        worker.process.stdin.close()


def _death(worker: _Worker) -> str:
    code = worker.process.wait()
    if code == -signal.SIGKILL:
        return "the worker was killed; the system does that when memory runs out"
    how = f"died with signal {-code}" if code < 0 else f"ended with exit code {code}"
    said = f"; what it said: {worker.log}" if worker.log.stat().st_size else ""
    return f"the worker {how}{said}"
