"""Loss over two hyperparameters at once: the heat maps of Marek et al. 2025 (arXiv 2507.07101), figure 1b.

One idea: a map shows, for each pair of values, the best loss over all other hyperparameters; what diverged and what was
never run are two different kinds of hole, and neither is left blank.
"""

from itertools import combinations

import numpy as np

from smallbatch.analysis.robustness import hyperparameters, scale
from smallbatch.analysis.sheets import Row
from smallbatch.analysis.table import RunTable


def surfaces(table: RunTable) -> list[Row]:
    """Return a row for every pair of values of every two hyperparameters of each grid; loss None where not run."""
    rows: list[Row] = []
    for group in table.groups:
        means = group.mean_P
        for x, y in combinations(hyperparameters(group), 2):
            best: dict[tuple, float] = {}
            for x_value, y_value, mean in zip(group.values(x), group.values(y), means, strict=True):
                if x_value is not None and y_value is not None:
                    known = best.get((x_value, y_value), np.nan)
                    best[x_value, y_value] = float(np.fmin(known, mean))
            for x_value, y_value in sorted(best, key=lambda pair: (scale(x, pair[0]), scale(y, pair[1]))):
                loss = best[x_value, y_value]
                rows.append(
                    {"setting": group.setting, "arm": group.arm, "batch_size": group.batch_size, "x": x, "y": y,
                     "x_value": x_value, "y_value": y_value, "loss_nats": None if np.isnan(loss) else loss}
                )  # fmt: skip
    return rows
