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
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from smallbatch.grid.directory import SweepDirectory
from smallbatch.grid.tasks import Failures, Task


@dataclass
class _Worker:
    process: subprocess.Popen
    cores: str
    task: Task | None = None
    programs: set[str] = field(default_factory=set)


def core_groups(cores_per_worker: int) -> list[list[int]]:
    """Return the cores of each worker; all of them for one worker if there are fewer than it asks for."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    groups = [cores[i : i + cores_per_worker] for i in range(0, len(cores), cores_per_worker)]
    return [group for group in groups if len(group) == cores_per_worker] or [cores]


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
        waiting = collections.deque(tasks)
        self._events = queue.Queue()  # not to hear of the workers of a run before
        failures = Failures(self._directory)
        try:
            for cores in self._cores[: len(tasks)]:
                self._start(cores)
            while not stop():
                on_change({worker.task.cell.id for worker in self._workers if worker.task})
                for worker in self._workers:
                    if worker.task is None and waiting:
                        self._give(worker, self._choose(worker, waiting))
                if not any(worker.task for worker in self._workers):
                    return
                try:
                    worker, answer = self._events.get(timeout=1.0)
                except queue.Empty:
                    continue
                self._take(worker, answer, waiting, failures)
        finally:
            self._end()

    def _start(self, cores: str) -> None:
        pinned = cores if hasattr(os, "sched_setaffinity") else ""
        keep = "keep" if self._keep_checkpoints else "drop"
        # A session of its own: Ctrl-C is for the sweep, which then tells its workers.
        process = subprocess.Popen(
            [sys.executable, "-m", "smallbatch.grid.worker", str(self._directory.path), pinned, keep],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        worker = _Worker(process, cores)
        self._workers.append(worker)
        threading.Thread(target=_listen, args=(worker, self._events), daemon=True).start()

    def _choose(self, worker: _Worker, waiting: collections.deque[Task]) -> Task:
        """Take a task whose program this worker has; else of one that no other has; else the program with most left."""
        left = collections.Counter(task.program for task in waiting)
        elsewhere = {program for other in self._workers if other is not worker for program in other.programs}
        rank = lambda program: (program in worker.programs, program not in elsewhere, left[program])
        program = max(left, key=rank)
        task = next(task for task in waiting if task.program == program)
        waiting.remove(task)
        return task

    def _give(self, worker: _Worker, task: Task) -> None:
        worker.task = task
        worker.programs.add(task.program)
        assert worker.process.stdin is not None
        order = json.dumps({"id": task.cell.id, "until_tokens": task.until_tokens})
        with contextlib.suppress(OSError):  # it died: its end is on the way as an event
            print(order, file=worker.process.stdin, flush=True)

    def _take(self, worker: _Worker, answer: dict | None, waiting: collections.deque[Task], failures: Failures) -> None:
        task, worker.task = worker.task, None
        if answer is None:
            self._workers.remove(worker)
            code = worker.process.wait()
            if task is not None or waiting:
                self._start(worker.cores)
            answer = {"status": "failed", "error": _death(code), "again": True}
        if task is not None and failures.again(task, answer):
            waiting.append(task)

    def _end(self) -> None:
        """Let the workers save what they are at, and wait for them."""
        for worker in self._workers:
            if worker.process.stdin is not None:
                with contextlib.suppress(OSError):
                    worker.process.stdin.close()
        for worker in self._workers:
            try:
                worker.process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                os.killpg(worker.process.pid, signal.SIGKILL)
        self._workers.clear()


def _listen(worker: _Worker, events: queue.Queue) -> None:
    assert worker.process.stdout is not None
    with worker.process.stdout as answers:
        for line in answers:
            events.put((worker, json.loads(line)))
    events.put((worker, None))


def _death(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the worker was killed; the system does that when memory runs out"
    return f"the worker died with signal {-code}" if code < 0 else f"the worker ended with exit code {code}"
