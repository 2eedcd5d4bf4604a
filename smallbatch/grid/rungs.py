"""Successive halving over learning rates (Jamieson & Talwalkar 2016, arXiv 1502.07943).

Cells that differ only in the learning rate are compared. With a factor f and a budget of T tokens, each is validated at
T/f^2 and T/f tokens, the rungs, and only the best 1/f of them, rounded up, continue. A cell that is cut has trained on
part of its schedule only, so its loss does not predict its final loss.
"""

import math
from collections.abc import Callable, Sequence

from smallbatch.grid.cells import Cell, learning_rate_siblings
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.plan.plan import Plan
from smallbatch.runs import records

RUNGS = 2


def rungs(plan: Plan, factor: int) -> list[int]:
    """Return the token counts at which cells are compared: whole updates before the end."""
    counts = [plan.budget_tokens // factor**power for power in range(RUNGS, 0, -1)]
    whole = [plan.tokens_at(plan.step_at(tokens)) for tokens in counts]
    return [tokens for tokens in dict.fromkeys(whole) if tokens < plan.budget_tokens]


def run_rungs(
    directory: SweepDirectory,
    cells: list[Cell],
    plans: dict[str, Plan],
    factor: int,
    run_all: Callable[[Callable[[], Sequence[tuple[Cell, int]]]], bool],
) -> None:
    """Train all cells to each rung, and cut the worst there.

    run_all: given a function that returns the cells below their target, with the token count to stop at, runs them
        until it returns none; returns False if it was stopped before.
    """
    groups = learning_rate_siblings(cells)
    for rung in range(RUNGS):
        # {cell id: [tokens of this rung], or [] if the cell has fewer rungs}
        targets = {cell.id: rungs(plans[cell.id], factor)[rung : rung + 1] for group in groups for cell in group}

        def below(targets: dict[str, list[int]] = targets) -> list[tuple[Cell, int]]:
            return [
                (cell, tokens)
                for group in groups
                for cell in group
                for tokens in targets[cell.id]
                if directory.state(cell.id).status == "missing" and _stopped_at(directory, cell)[0] < tokens
            ]

        if not run_all(below):
            return
        for group in groups:
            for tokens in targets[group[0].id]:
                _cut(directory, group, tokens, keep=math.ceil(len(group) / factor ** (rung + 1)))


def _cut(directory: SweepDirectory, group: list[Cell], rung_tokens: int, keep: int) -> None:
    """Mark all but the best cells of a group as cut; none if any is below this rung or has passed it."""
    losses: dict[str, float] = {}
    for cell in group:
        status = directory.state(cell.id).status
        if status in ("done", "missing"):
            tokens, loss = _stopped_at(directory, cell)
            if status == "done" or tokens != rung_tokens:
                return
            losses[cell.id] = loss
    for cell_id in sorted(losses, key=lambda cell_id: losses[cell_id])[keep:]:
        directory.mark(cell_id, "cut", {"tokens": rung_tokens, "validation_loss_nats": losses[cell_id]})


def _stopped_at(directory: SweepDirectory, cell: Cell) -> tuple[int, float]:
    """Return the tokens and validation loss of a cell that is stopped at a rung; (0, infinity) for other cells."""
    path = directory.cell(cell.id).result
    result = records.read_result(path) if path.exists() else None
    if result is None or result.status != "stopped" or result.validation_loss_nats is None:
        return 0, math.inf
    return result.tokens, result.validation_loss_nats
