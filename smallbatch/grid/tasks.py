"""What every engine takes and keeps to: tasks, one interface, and when a cell that fails is given up.

An engine holds no state that matters: it can be killed, swapped for another, or started twice on one directory.
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
BUSY_SECS = 10.0  # until a cell that another process held is tried again


@dataclass(frozen=True)
class Task:
    """A cell, to be run to its end or until so many tokens."""

    cell: Cell
    program: str  # what it has compiled in common with others
    until_tokens: int | None = None


class Engine(Protocol):
    """Runs tasks somewhere."""

    @property
    def size(self) -> int:
        """Return how many cells run at once."""
        ...

    def run(self, tasks: list[Task], on_change: Callable[[set[str]], None], stop: Callable[[], bool]) -> None:
        """Run tasks until all have ended, or until `stop()` says so; then those under way are saved.

        A cell that somebody else holds is tried again as long as there are others to run, and is then left to them:
        the caller looks again. One that is marked as skipped before its turn comes is not run.
        on_change: called with the ids of the cells under way, now and then, and after an end before more are begun.
        """
        ...


class Failures:
    """Counts the failures of each cell, and marks it as failed when there is no point in another attempt."""

    def __init__(self, directory: SweepDirectory):
        self._directory = directory
        self._attempts: collections.Counter[tuple[str, int]] = collections.Counter()

    def again(self, task: Task, answer: dict) -> bool:
        """Return whether to run a task again after a worker's answer (see worker.attempt)."""
        if answer["status"] != "failed":
            return False
        # Machines that may be taken away lose a long cell many times: what counts is attempts that save nothing new.
        key = (task.cell.id, self._saved_step(task.cell.id))
        self._attempts[key] += 1
        if answer["again"] and self._attempts[key] < ATTEMPTS:
            return True
        error = f"{answer['error']} ({self._attempts[key]} attempts)"
        self._directory.mark(task.cell.id, "failed", {"error": error})
        return False

    def _saved_step(self, cell_id: str) -> int:
        names = [path.name for path in self._directory.cell(cell_id).checkpoints.glob("*")]
        return max((int(name) for name in names if name.isdecimal()), default=0)


def failure(error: Exception) -> tuple[dict, str]:
    """Return the answer about a cell that an error ended, and what its log is told. A mistake is not tried again."""
    if isinstance(error, UserError):
        return {"status": "failed", "error": str(error), "again": False}, f"error: {error}\n"
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"status": "failed", "error": reason, "again": True}, "".join(traceback.format_exception(error))


class Waiting:
    """The tasks of a run that wait for their turn.

    Some come back: a cell that failed, at once, and one that another process holds, a while later, for that may have
    been on a node that is lost.
    """

    def __init__(self, tasks: list[Task], directory: SweepDirectory):
        self._tasks = [(task, 0.0) for task in tasks]  # with the time before which it is not to be tried
        self._failures = Failures(directory)

    def due(self) -> list[Task]:
        """Return the tasks whose turn may have come."""
        now = time.monotonic()
        return [task for task, not_before in self._tasks if not_before <= now]

    def take(self, task: Task) -> Task:
        """Remove a task and return it."""
        self._tasks = [(other, not_before) for other, not_before in self._tasks if other is not task]
        return task

    def answered(self, task: Task, answer: dict) -> None:
        """Take a task back if it is to be run again after a worker's answer (see worker.attempt)."""
        if answer["status"] == "busy":
            self._tasks.append((task, time.monotonic() + BUSY_SECS))
        elif self._failures.again(task, answer):
            self._tasks.append((task, 0.0))
