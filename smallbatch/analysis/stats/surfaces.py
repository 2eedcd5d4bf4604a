"""Loss over pairs of hyperparameters: the heat maps of Marek et al. 2025 (arXiv 2507.07101), figure 1b.

For each pair of values, a map shows the lowest loss over all other hyperparameters. Pairs that diverged and pairs that
were not run are marked differently.
"""

from itertools import combinations
from typing import Any

import numpy as np

from smallbatch.analysis.read.run_table import Group, RunTable
from smallbatch.analysis.report.tables import Row


def varied(group: Group) -> list[str]:
    """Return the hyperparameters with two or more values in a group; zero and text count as values."""
    names = sorted({name for point in group.points for name, _ in point})
    return [name for name in names if len(set(group.values(name)) - {None}) > 1]


def rank(value: Any) -> tuple:
    """Return the sort key of a value on an axis: numbers by size, then text."""
    return (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))


def surfaces(table: RunTable) -> list[Row]:
    """Return a row for every pair of values of any two hyperparameters of each grid; loss None if not run."""
    rows: list[Row] = []
    for group in table.groups:
        for x, y in combinations(varied(group), 2):
            best: dict[tuple, float] = {}
            for x_value, y_value, mean in zip(group.values(x), group.values(y), group.mean_P, strict=True):
                if x_value is not None and y_value is not None:
                    known = best.get((x_value, y_value), np.nan)
                    best[x_value, y_value] = float(np.fmin(known, mean))
            for x_value, y_value in sorted(best, key=lambda pair: (rank(pair[0]), rank(pair[1]))):
                loss = best[x_value, y_value]
                row: Row = {"setting": group.setting, "arm": group.arm, "batch_size": group.batch_size}
                row |= {"x": x, "y": y, "x_value": x_value, "y_value": y_value}
                rows.append(row | {"loss_nats": None if np.isnan(loss) else loss})
    return rows
