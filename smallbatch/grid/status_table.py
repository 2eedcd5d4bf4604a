"""The status of a sweep: a table with one row per batch size, and the errors of failed cells."""

import math
from collections import Counter

from smallbatch.grid.axes import BATCH_SIZE
from smallbatch.grid.cells import Cell
from smallbatch.grid.sweep_dir import State, SweepDirectory

STATUSES = ("done", "running", "diverged", "failed", "cut", "skipped", "missing")


def status_lines(
    directory: SweepDirectory, cells: list[Cell], states: dict[str, State], running: set[str]
) -> list[str]:
    """Return the status table, and a line for each failed cell with its error and its log."""
    lines = [_table(cells, states, running)]
    for cell in cells:
        if states[cell.id].status == "failed":
            log_path = directory.log(cell.id)
            log = f"; its log: {log_path}" if log_path.exists() else ""  # a worker may have died before it wrote one
            lines.append(f"failed: {cell.name}: {states[cell.id].error}{log}")
    return lines


def _table(cells: list[Cell], states: dict[str, State], running: set[str]) -> str:
    """Return the number of cells by status and the best loss so far, for each batch size."""
    head = ["batch", *STATUSES, "best loss", "at"]
    table = [head]
    for size in dict.fromkeys(cell.flat[BATCH_SIZE] for cell in cells):
        group = [cell for cell in cells if cell.flat[BATCH_SIZE] == size]
        counts = Counter("running" if cell.id in running else states[cell.id].status for cell in group)
        best = min(group, key=lambda cell: _loss(states[cell.id]))
        loss = _loss(states[best.id])
        found = [f"{loss:.4f}", best.name_without(BATCH_SIZE)] if math.isfinite(loss) else ["", ""]
        table.append([f"{size:,}", *(str(counts[status] or "") for status in STATUSES), *found])
    columns = [column for column in zip(*table, strict=True) if any(column[1:])]
    aligned = []
    for column in columns:
        width = max(map(len, column))
        aligned.append([word.ljust(width) if column[0] == "at" else word.rjust(width) for word in column])
    return "\n".join("  ".join(row).rstrip() for row in zip(*aligned, strict=True))


def _loss(state: State) -> float:
    return state.validation_loss_nats if state.status == "done" and state.validation_loss_nats is not None else math.inf
