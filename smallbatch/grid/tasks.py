"""What every engine takes and keeps to: tasks, one interface, and when a cell that fails is given up.

An engine holds no state that matters: it can be killed, swapped for another, or started twice on one directory.
"""

import collections
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from smallbatch.grid.cells import Cell
from smallbatch.grid.directory import SweepDirectory

ATTEMPTS = 3


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

        A cell that somebody else holds is left to them: the caller looks again. One that is marked as skipped before
        its turn comes is not run.
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
