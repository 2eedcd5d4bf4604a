"""Loss over two hyperparameters at once: the heat maps of Marek et al. 2025 (arXiv 2507.07101), figure 1b.

One idea: a map shows, for each pair of values, the best loss over all other hyperparameters; what diverged and what was
never run are two different kinds of hole, and neither is left blank.
"""

from itertools import combinations
from typing import Any

import numpy as np

from smallbatch.analysis.read.run_table import Group, RunTable
from smallbatch.analysis.report.tables import Row


def varied(group: Group) -> list[str]:
    """Return the hyperparameters with two values or more in a group; zero and words count too."""
    names = sorted({name for point in group.points for name, _ in point})
    return [name for name in names if len(set(group.values(name)) - {None}) > 1]


def rank(value: Any) -> tuple:
    """What an axis is sorted by: numbers by size, before words."""
    return (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))


def surfaces(table: RunTable) -> list[Row]:
    """Return a row for every pair of values of every two hyperparameters of each grid; loss None where not run."""
    rows: list[Row] = []
    for group in table.groups:
        means = group.mean_P
        for x, y in combinations(varied(group), 2):
            best: dict[tuple, float] = {}
            for x_value, y_value, mean in zip(group.values(x), group.values(y), means, strict=True):
                if x_value is not None and y_value is not None:
                    known = best.get((x_value, y_value), np.nan)
                    best[x_value, y_value] = float(np.fmin(known, mean))
            for x_value, y_value in sorted(best, key=lambda pair: (rank(pair[0]), rank(pair[1]))):
                loss = best[x_value, y_value]
                rows.append(
                    {"setting": group.setting, "arm": group.arm, "batch_size": group.batch_size, "x": x, "y": y,
                     "x_value": x_value, "y_value": y_value, "loss_nats": None if np.isnan(loss) else loss}
                )  # fmt: skip
    return rows
