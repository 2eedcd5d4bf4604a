"""The engine for a machine without an accelerator: one worker process per core, or per group of cores."""

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

from smallbatch.errors import UserError
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.grid.tasks import Task, TaskQueue

SAVE_SECS = 120.0  # for workers to save their cells


def core_groups(cores_per_worker: int, workers: int | None = None) -> list[list[int]]:
    """Return the cores of each worker; a single worker gets all cores if there are fewer than `cores_per_worker`.

    workers: None for as many as there are cores for. Raises UserError if there are too few cores.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    groups = [cores[i : i + cores_per_worker] for i in range(0, len(cores), cores_per_worker)]
    groups = [group for group in groups if len(group) == cores_per_worker] or [cores]
    if workers is not None and not 1 <= workers <= len(groups):
        raise UserError(
            f"--workers={workers}: the {len(cores)} cores of this machine allow 1 to {len(groups)} workers with "
            f"{cores_per_worker} core{'s' * (cores_per_worker != 1)} each; use such a number, or omit the flag"
        )
    return groups[:workers]


class _Worker:
    """A worker process (see worker.py)."""

    def __init__(self, directory: SweepDirectory, cores: list[int], keep_checkpoints: bool, events: queue.Queue):
        self.cores = cores
        self.task: Task | None = None
        self.programs: set[str] = set()  # compiled by this worker
        self._log = directory.worker_log(f"{socket.gethostname()}-{os.getpid()}-{cores[0]}")
        keep = "keep" if keep_checkpoints else "drop"
        with self._log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "smallbatch.grid.worker", str(directory.path), ",".join(map(str, cores)), keep],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which then stops its workers
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: queue.Queue) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as outcomes:
            for line in outcomes:
                events.put((self, json.loads(line)))
        events.put((self, None))

    def start(self, task: Task) -> None:
        self.task = task
        self.programs.add(task.program)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the worker died: `_listen` reports it
            line = json.dumps({"id": task.cell.id, "until_tokens": task.until_tokens})
            print(line, file=self._process.stdin, flush=True)

    def stop(self) -> None:
        """Ask the worker to save its cell and exit."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the worker died
            self._process.stdin.close()

    def wait(self) -> str:
        """Wait for the end of the process, and return how it ended; an empty log is deleted."""
        try:
            code = self._process.wait(timeout=SAVE_SECS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.wait()
        log = f"; its output: {self._log}"
        if self._log.exists() and not self._log.stat().st_size:
            self._log.unlink()
            log = ""
        if code == -signal.SIGKILL:
            return "the worker was killed, probably because the system ran out of memory"
        return f"the worker {f'died with signal {-code}' if code < 0 else f'ended with exit code {code}'}{log}"


class LocalEngine:
    """Runs tasks on worker processes."""

    def __init__(self, directory: SweepDirectory, core_groups: list[list[int]], keep_checkpoints: bool = False):
        self._directory, self._core_groups, self._keep_checkpoints = directory, core_groups, keep_checkpoints
        self.size = len(core_groups)

    def run(self, tasks: list[Task], on_change: Callable[[set[str]], None], stop: Callable[[], bool]) -> None:
        """Run tasks until all have ended, or until `stop()` returns True (see tasks.Engine)."""
        waiting = TaskQueue(tasks, self._directory)
        events: queue.Queue[tuple[_Worker, dict | None]] = queue.Queue()

        def start(cores: list[int]) -> _Worker:
            return _Worker(self._directory, cores, self._keep_checkpoints, events)

        workers = [start(cores) for cores in self._core_groups[: len(tasks)]]
        try:
            while not stop():
                on_change({worker.task.cell.id for worker in workers if worker.task})
                for worker in workers:
                    if worker.task is None and (due := waiting.due()):
                        others = set().union(*(other.programs for other in workers if other is not worker))
                        worker.start(waiting.take(_choose(due, worker.programs, others)))
                if not any(worker.task for worker in workers):
                    return
                try:
                    worker, outcome = events.get(timeout=1.0)
                except queue.Empty:
                    continue
                task, worker.task = worker.task, None
                if outcome is None:
                    workers.remove(worker)
                    worker.stop()
                    outcome = {"status": "failed", "error": worker.wait(), "again": True}
                    if task is not None or waiting.due():
                        workers.append(start(worker.cores))
                if task is not None:
                    waiting.finish(task, outcome)
        finally:
            for worker in workers:
                worker.stop()
            for worker in workers:
                worker.wait()


def _choose(due: list[Task], compiled: set[str], compiled_elsewhere: set[str]) -> Task:
    """Return a task whose program this worker has compiled, else no worker, else of the most common program."""
    left = collections.Counter(task.program for task in due)
    return max(
        due, key=lambda task: (task.program in compiled, task.program not in compiled_elsewhere, left[task.program])
    )
