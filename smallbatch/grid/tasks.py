"""The interface between a sweep and its engines: options, tasks, and retries of failed cells.

An engine keeps no state outside the sweep directory, so it can be killed, replaced, or started twice on one directory.
"""

import collections
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from smallbatch.errors import UserError
from smallbatch.grid.cells import Cell
from smallbatch.grid.sweep_dir import SweepDirectory

ATTEMPTS = 3
BUSY_SECS = 10.0  # before a cell that another process holds is tried again


@dataclass(frozen=True)
class Options:
    """The flags of the sweep command, with their defaults."""

    engine: str = "auto"  # auto | local | lanes | ray
    ray_address: str | None = None  # HOST:PORT; None: the cluster that this machine is part of
    lanes: int | None = None  # parallel cells of the lane engine; None: measured
    workers: int | None = None  # processes of the local engine; None: limited by the number of cores
    halving: int | None = None  # factor of successive halving
    stop_diverged: bool = False
    keep_checkpoints: bool = False


@dataclass(frozen=True, eq=False)
class Task:
    """A cell to train to its end, or to a number of tokens."""

    cell: Cell
    program: str  # equal for cells that share a compiled program
    until_tokens: int | None = None


class Engine(Protocol):
    """Runs tasks in parallel."""

    @property
    def size(self) -> int:
        """Return the number of cells that run at once."""
        ...

    def run(self, tasks: list[Task], on_change: Callable[[set[str]], None], stop: Callable[[], bool]) -> None:
        """Run tasks until all have ended, or until `stop()` returns True; running cells are then saved.

        A cell that another process holds is retried while other tasks remain, and is then left to the caller. A cell
        that was marked as skipped is not run.
        on_change: called regularly, and whenever a cell ends, with the ids of the running cells.
        """
        ...


class Failures:
    """Counts the failed attempts of each cell, and marks the cell as failed after the last."""

    def __init__(self, directory: SweepDirectory):
        self._directory = directory
        self._attempts: collections.Counter[tuple[str, int]] = collections.Counter()

    def should_retry(self, task: Task, outcome: dict) -> bool:
        """Return whether to run a task again after an outcome (see worker.attempt)."""
        if outcome["status"] != "failed":
            return False
        # Preemptible machines lose a long cell many times, so only attempts without a new checkpoint count.
        checkpoints = [path.name for path in self._directory.cell(task.cell.id).checkpoints.glob("*")]
        saved_step = max((int(name) for name in checkpoints if name.isdecimal()), default=0)
        self._attempts[task.cell.id, saved_step] += 1
        attempts = self._attempts[task.cell.id, saved_step]
        if outcome["again"] and attempts < ATTEMPTS:
            return True
        self._directory.mark(task.cell.id, "failed", {"error": f"{outcome['error']} ({attempts} attempts)"})
        return False


def failure(error: Exception) -> tuple[dict, str]:
    """Return the outcome of a cell that raised an error, and the text for its log. A usage error is not retried."""
    if isinstance(error, UserError):
        return {"status": "failed", "error": str(error), "again": False}, f"error: {error}\n"
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"status": "failed", "error": reason, "again": True}, "".join(traceback.format_exception(error))


class TaskQueue:
    """Tasks that wait to run. A failed cell is retried at once, and a busy one after BUSY_SECS."""

    def __init__(self, tasks: list[Task], directory: SweepDirectory):
        self._not_before = dict.fromkeys(tasks, 0.0)  # {task: time before which it does not run}
        self._failures = Failures(directory)

    def due(self) -> list[Task]:
        """Return the tasks that may run now."""
        now = time.monotonic()
        return [task for task, not_before in self._not_before.items() if not_before <= now]

    def take(self, task: Task) -> Task:
        """Remove a task and return it."""
        del self._not_before[task]
        return task

    def finish(self, task: Task, outcome: dict) -> None:
        """Put a task back if its outcome (see worker.attempt) requires another attempt."""
        if outcome["status"] == "busy":
            self._not_before[task] = time.monotonic() + BUSY_SECS
        elif self._failures.should_retry(task, outcome):
            self._not_before[task] = 0.0
