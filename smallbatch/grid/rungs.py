"""Successive halving over learning rates: all start, and at each rung only the best go on. Off unless asked for.

Cells that differ in the learning rate alone compete. With a factor f and a budget of T tokens, each is validated at
T/f^2 and T/f tokens, and the best 1/f of them, rounded up, go on from where they are (Jamieson & Talwalkar 2016, arXiv
1502.07943). What is cut has seen a part of its schedule only: its loss says where it stood then, not what it would be.
"""

import math
from collections.abc import Callable, Sequence

from smallbatch.grid.cells import Cell, rivals
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.plan.plan import Plan
from smallbatch.runs import records

RUNGS = 2


def rungs(plan: Plan, factor: int) -> list[int]:
    """Return the token counts at which cells are compared: whole updates, before the end."""
    counts = [plan.budget_tokens // factor**power for power in range(RUNGS, 0, -1)]
    whole = [plan.tokens_at(plan.step_at(tokens)) for tokens in counts]
    return [tokens for tokens in dict.fromkeys(whole) if tokens < plan.budget_tokens]


def paused(directory: SweepDirectory, cell_id: str) -> tuple[int, float] | None:
    """Return (tokens, validation loss) of a cell that waits at a rung."""
    path = directory.cell(cell_id).result
    if not path.exists():
        return None
    result = records.read_result(path)
    if result.status != "stopped" or result.validation_loss_nats is None:
        return None
    return result.tokens, result.validation_loss_nats


def cut(directory: SweepDirectory, group: list[Cell], rung: int, at_tokens: int, factor: int) -> None:
    """Mark the cells of a group that end at this rung (0 first): none if some have not reached it, or are past it."""
    keep = math.ceil(len(group) / factor ** (rung + 1))
    losses: dict[str, float] = {}
    for cell in group:
        status = directory.state(cell.id).status
        if status in ("diverged", "failed", "cut", "skipped"):
            continue  # out already
        at = paused(directory, cell.id)
        if status == "done" or (at is not None and at[0] > at_tokens):
            return  # it was decided before
        if at is None or at[0] < at_tokens:
            return
        losses[cell.id] = at[1]
    ranked = sorted((cell for cell in group if cell.id in losses), key=lambda cell: losses[cell.id])
    for cell in ranked[keep:]:
        directory.mark(cell.id, "cut", {"tokens": at_tokens, "validation_loss_nats": losses[cell.id]})


def whole_groups(directory: SweepDirectory, cells: list[Cell], plans: dict[str, Plan], factor: int) -> int:
    """Return how many groups of rivals `cut` leaves whole: one of them is done, by a command that did not halve.

    What it had at the rungs was not written down, so there is nothing to compare the others with.
    """
    found = 0
    for group in rivals(cells):
        below = {cell.id for rung in range(RUNGS) for cell, _ in _below(directory, [group], plans, factor, rung)}
        found += bool(below) and any(directory.state(cell.id).status == "done" for cell in group)
    return found


def climb(
    directory: SweepDirectory,
    cells: list[Cell],
    plans: dict[str, Plan],
    factor: int,
    run_all: Callable[[Callable[[], Sequence[tuple[Cell, int]]]], bool],
) -> None:
    """Bring all rivals to each rung, and cut there.

    run_all: given a function that returns the cells which have not come as far as they should, with the token counts to
        stop at, runs them until it returns none; False if it was stopped before.
    """
    groups = rivals(cells)
    for rung in range(RUNGS):
        if not run_all(lambda rung=rung: _below(directory, groups, plans, factor, rung)):
            return
        for group in groups:
            at_rungs = rungs(plans[group[0].id], factor)
            if rung < len(at_rungs):
                cut(directory, group, rung, at_rungs[rung], factor)


def _below(
    directory: SweepDirectory, groups: list[list[Cell]], plans: dict[str, Plan], factor: int, rung: int
) -> list[tuple[Cell, int]]:
    """Return the cells that have not reached a rung, with the tokens that it is at."""
    found = []
    for cell in (cell for group in groups for cell in group):
        at_rungs = rungs(plans[cell.id], factor)
        if rung < len(at_rungs) and directory.state(cell.id).status == "missing":
            at = paused(directory, cell.id)
            if at is None or at[0] < at_rungs[rung]:
                found.append((cell, at_rungs[rung]))
    return found
