"""Grids of runs: a grid is data, its cells are configs, and engines run what is missing."""

from smallbatch.grid.axes import (
    Grid,
    axis,
    by_batch_size,
    chain,
    log2_range,
    multiplied,
    point,
    product,
    seeds,
    where,
    zipped,
)

__all__ = [
    "Grid",
    "axis",
    "by_batch_size",
    "chain",
    "log2_range",
    "multiplied",
    "point",
    "product",
    "seeds",
    "where",
    "zipped",
]
