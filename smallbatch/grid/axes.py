"""Functions that build grids. A grid is a tuple of cells; a cell maps config keys to values.

    product(axis("train.batch_size", [1, 4]), axis("optimizer.peak_lr", log2_range(0.001, 0.008)))

has 2 x 4 cells. Order is kept.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from smallbatch.errors import UserError

Values: TypeAlias = dict[str, Any]  # {config key: value} of a cell
Grid: TypeAlias = tuple[Values, ...]

BATCH_SIZE = "train.batch_size"
LEARNING_RATE = "optimizer.peak_lr"


def axis(key: str, values: Iterable[Any]) -> Grid:
    """Return one cell per value of a key."""
    cells = tuple({key: value} for value in values)
    if not cells:
        raise UserError(f"the axis {key} has no values; give at least one")
    return cells


def seeds(count: int) -> Grid:
    """Return the axis of the seeds 0 to count - 1."""
    return axis("train.seed", range(count))


def point(values: Mapping[str, Any]) -> Grid:
    """Return one cell, to set keys that do not vary: product(point({...}), axis(...))."""
    return (dict(values),)


def product(*grids: Grid) -> Grid:
    """Return every combination of cells; the last grid varies fastest. Raises UserError if a key is set twice."""
    cells: Grid = ({},)
    for grid in grids:
        cells = tuple(_merged(first, second) for first in cells for second in grid)
    return cells


def chain(*grids: Grid) -> Grid:
    """Return the cells of all grids, one grid after the other."""
    return tuple(cell for grid in grids for cell in grid)


def log2_range(low: float, high: float, per_octave: int = 1) -> tuple[float, ...]:
    """Return low, low x 2^(1/per_octave), ... up to high. Raises UserError if the range is empty."""
    if not (0 < low <= high and per_octave >= 1):
        raise UserError(f"log2_range({low}, {high}, {per_octave}) is empty; use 0 < low <= high and per_octave >= 1")
    steps = math.floor(per_octave * math.log2(high / low) + 1e-9)
    return tuple(low * 2 ** (i / per_octave) for i in range(steps + 1))


def multiplied(grid: Grid, key: str, factors: Sequence[float]) -> Grid:
    """Return every cell once per factor, with its value of a key multiplied by it: a search around a center."""
    for cell in grid:
        if cell.get(key) is None:
            raise UserError(f"the cell {_shown(cell)} has no {key} to multiply; set the key first")
    return tuple(cell | {key: cell[key] * factor} for cell in grid for factor in factors)


def by_batch_size(grid: Grid, key: str, values: Mapping[int, Any]) -> Grid:
    """Return every cell with a key set to the value for the cell's batch size. values: {batch size: value}."""
    for cell in grid:
        if cell.get(BATCH_SIZE) not in values:
            known = ", ".join(map(str, values))
            raise UserError(f"the cell {_shown(cell)} has no {key} for its batch size; there are values for {known}")
    return tuple(cell | {key: values[cell[BATCH_SIZE]]} for cell in grid)


def _merged(first: Values, second: Values) -> Values:
    if both := sorted(first.keys() & second.keys()):
        raise UserError(f"a cell sets {', '.join(both)} twice, in {_shown(first)} and {_shown(second)}; remove one")
    return first | second


def _shown(cell: Values) -> str:
    return "{" + ", ".join(f"{key}={value}" for key, value in cell.items()) + "}"
