"""The words that a grid is written in: each returns a grid, a tuple of cells; a cell maps dotted keys to values.

    product(axis("train.batch_size", [1, 4]), axis("optimizer.peak_lr", log2_range(0.001, 0.008)))

has 2 x 4 cells. Order is kept, so a grid reads from its first axis to its last.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from smallbatch.errors import UserError

Values: TypeAlias = dict[str, Any]  # what a cell changes
Grid: TypeAlias = tuple[Values, ...]

BATCH_SIZE = "train.batch_size"
LEARNING_RATE = "optimizer.peak_lr"


def axis(key: str, values: Iterable[Any]) -> Grid:
    """Return a cell for each value of a key."""
    cells = tuple({key: value} for value in values)
    if not cells:
        raise UserError(f"the axis {key} has no values")
    return cells


def seeds(count: int) -> Grid:
    """Return the axis of the seeds 0 to count - 1."""
    return axis("train.seed", range(count))


def point(values: Mapping[str, Any]) -> Grid:
    """Return one cell, to give keys that do not vary beside those that do: product(point({...}), axis(...))."""
    return (dict(values),)


def product(*grids: Grid) -> Grid:
    """Return every combination of cells, the last grid varying fastest. Raises UserError for a key set twice."""
    cells: Grid = ({},)
    for grid in grids:
        cells = tuple(_merged(a, b) for a in cells for b in grid)
    return cells


def zipped(*grids: Grid) -> Grid:
    """Return the first cells merged, the second, ... Raises UserError for grids of different sizes."""
    if len({len(grid) for grid in grids}) > 1:
        raise UserError(f"zipped grids have the same size, not {', '.join(str(len(grid)) for grid in grids)}")
    return tuple(_merged_all(cells) for cells in zip(*grids, strict=True))


def chain(*grids: Grid) -> Grid:
    """Return the cells of one grid after those of the other."""
    return tuple(cell for grid in grids for cell in grid)


def where(grid: Grid, keep: Callable[[Values], bool]) -> Grid:
    """Return the cells that `keep` returns True for."""
    return tuple(cell for cell in grid if keep(cell))


def log2_range(low: float, high: float, per_octave: int = 1) -> tuple[float, ...]:
    """Return low, low x 2^(1/per_octave), ... up to high: steps of equal ratio. Raises UserError for an empty range."""
    if not (0 < low <= high and per_octave >= 1):
        raise UserError(
            f"log2_range takes 0 < low <= high and a whole number of steps, not {low}, {high}, {per_octave}"
        )
    steps = math.floor(per_octave * math.log2(high / low) + 1e-9)
    return tuple(low * 2 ** (i / per_octave) for i in range(steps + 1))


def multiplied(grid: Grid, key: str, factors: Sequence[float]) -> Grid:
    """Return every cell with its own value of a key times each factor: a search around a tuned centre."""
    for cell in grid:
        if cell.get(key) is None:
            raise UserError(f"there is no {key} to multiply in the cell {_shown(cell)}; set its centre before")
    return tuple(cell | {key: cell[key] * factor} for cell in grid for factor in factors)


def by_batch_size(grid: Grid, key: str, values: Mapping[int, Any]) -> Grid:
    """Return every cell with the value that a key has at the cell's batch size, in the place of its own if any."""
    cells = []
    for cell in grid:
        if cell.get(BATCH_SIZE) not in values:
            known = ", ".join(map(str, values))
            raise UserError(f"there is no {key} for the batch size of the cell {_shown(cell)}; there are {known}")
        cells.append(cell | {key: values[cell[BATCH_SIZE]]})
    return tuple(cells)


def _merged(a: Values, b: Values) -> Values:
    if both := sorted(a.keys() & b.keys()):
        raise UserError(f"a cell sets {', '.join(both)} twice: {_shown(a)} and {_shown(b)}")
    return a | b


def _merged_all(cells: Iterable[Values]) -> Values:
    merged: Values = {}
    for cell in cells:
        merged = _merged(merged, cell)
    return merged


def _shown(cell: Values) -> str:
    return "{" + ", ".join(f"{key}={value}" for key, value in cell.items()) + "}"
