"""Grids of runs. A grid is a tuple of cells, each cell is one config, and an engine runs the cells without a result."""

from smallbatch.grid.axes import Grid, axis, by_batch_size, chain, log2_range, multiplied, point, product, seeds

__all__ = ["Grid", "axis", "by_batch_size", "chain", "log2_range", "multiplied", "point", "product", "seeds"]
