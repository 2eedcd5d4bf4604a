"""Estimate the best learning rate at each batch size, and fit a power law to the estimates.

The estimate is the vertex of the parabola through the best cell of a grid and its two neighbours. It is approximate:
loss curves are steeper towards high learning rates, which shifts the vertex by up to a third of a grid step. The
interval assumes only that the loss has a single minimum. It extends to the neighbours of all cells that do not differ
significantly from the best one (intervals.maybe_best). Around a single best cell it is two grid steps wide. If such a
cell is at the edge of the grid, the interval is open on that side.

If the best cell is at the edge of its grid, the optimum is unknown: it is flagged and left out of the fit.
tests/test_coverage.py tests the coverage of both intervals on parabolas, on basins that are 1.25, 2 and 10 times as
steep to the right, exponential to the right, or flat to the left, and on cusps; on grids of factors 2 and sqrt 2; with
1 (exponent only), 3 and 7 seeds; and with noise that the learning rates share or not.
"""

from dataclasses import dataclass

import numpy as np

from smallbatch.analysis.read.run_table import Group, RunTable
from smallbatch.analysis.report.tables import Row
from smallbatch.analysis.robustness import Profile, profile
from smallbatch.analysis.stats import intervals, power_law
from smallbatch.analysis.stats.equal_flops import bounds, choose
from smallbatch.analysis.stats.intervals import Interval
from smallbatch.analysis.stats.power_law import PowerLaw

LEARNING_RATE = "optimizer.peak_lr"


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best learning rate of one grid."""

    batch_size: float
    tuned: float  # that of the chosen cell
    vertex: float | None = None  # minimum of the parabola; None at an edge
    edge: str | None = None
    interval: Interval | None = None  # of the vertex; None with a single seed
    half_width_log: float = np.nan  # of the log of that interval; with a single seed, of the best cell's neighbours

    @property
    def inside(self) -> bool:
        """Whether the optimum is known to be inside its grid."""
        return self.vertex is not None and (self.interval is None or bool(np.isfinite(self.half_width_log)))


def vertex_log2(log2_x: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return the x of the minimum of the least-squares parabola through each row of losses, [..., cells].

    Kept within the cells that it goes through: a parabola that opens downwards has its minimum at the better end.
    """
    centre = log2_x.mean()
    design = np.vander(log2_x - centre, 3)
    curvature, slope, _ = np.moveaxis(losses @ np.linalg.pinv(design).T, -1, 0)
    ends = np.where(losses[..., 0] <= losses[..., -1], log2_x[0], log2_x[-1])
    safe = np.where(curvature > 0, curvature, 1.0)
    found = np.where(curvature > 0, centre - slope / (2 * safe), ends)
    return np.clip(found, log2_x[0], log2_x[-1])


def optimum(group: Group, hyperparameter: str = LEARNING_RATE) -> Optimum | None:
    """Return the best learning rate of a grid; None where nothing came to a loss or the rate is not known."""
    choice = choose(group)
    if choice is None:
        return None
    run = next(run for run in group.runs[choice.index] if run)
    found = profile(group, hyperparameter)
    if found is None:
        return None if np.isnan(run.learning_rate) else Optimum(group.batch_size, run.learning_rate)
    rate = float(found.values[found.tuned] if np.isnan(run.learning_rate) else run.learning_rate)
    best = int(np.argmin(found.mean_nats))
    edge = {0: "lowest", len(found.values) - 1: "highest"}.get(best)
    if edge:
        return Optimum(group.batch_size, rate, edge=edge)
    around = slice(best - 1, best + 2)
    x, means = found.log2_multipliers, found.mean_nats
    vertex = vertex_log2(x[around], means[around]) if np.isfinite(means[around]).all() else x[best]
    low, high = bracket_log2(found, choice.noise)
    return Optimum(
        group.batch_size,
        rate,
        float(rate * 2**vertex),
        interval=(float(rate * 2**low), float(rate * 2**high)) if choice.noise.df else None,
        half_width_log=float(np.log(2) * (high - low) / 2),
    )


def bracket_log2(found: Profile, noise: intervals.Noise) -> Interval:
    """Return the outer neighbours of the cells that may be the best; infinite beyond the edges of the grid.

    The minimum of a function with a single minimum is between the neighbours of its best cell. With a single seed, the
    cell with the lowest loss is the best.
    """
    may_be_best = found.mean_nats == found.mean_nats.min()
    if noise.df:
        may_be_best = intervals.maybe_best(found.mean_nats, found.seeds, noise)
    x = np.concatenate([[-np.inf], found.log2_multipliers, [np.inf]])
    index = np.flatnonzero(may_be_best)
    return float(x[index[0]]), float(x[index[-1] + 2])


def law(optima: list[Optimum]) -> PowerLaw | None:
    """Fit best learning rate ~ batch size^p through the optima inside their grids; None with fewer than two.

    Without a sweep over learning rates, as in a table of tuned values, the values themselves are fitted.
    """
    inside = [o for o in optima if o.inside]
    if not inside and all(o.edge is None and o.vertex is None for o in optima):
        return power_law.fit(*np.array([(o.batch_size, o.tuned) for o in optima], float).reshape(-1, 2).T)
    points = np.array([(o.batch_size, o.vertex, o.half_width_log) for o in inside], float).reshape(-1, 3)
    return power_law.fit(*points.T)


def learning_rates(table: RunTable) -> tuple[list[Row], list[Row]]:
    """Return the best learning rate of each grid, and the exponent of each arm's law."""
    rows: list[Row] = []
    laws: list[Row] = []
    for (setting, arm), groups in table.series().items():
        optima = [found for group in groups if (found := optimum(group))]
        for o in optima:
            rows.append(
                {"setting": setting, "arm": arm, "batch_size": o.batch_size, "tuned_learning_rate": o.tuned,
                 "best_learning_rate": o.vertex, **bounds("best_learning_rate", o.interval), "edge_of_grid": o.edge}
            )  # fmt: skip
        found = law(optima)
        if found:
            laws.append(
                {"setting": setting, "arm": arm, "exponent": found.exponent, **bounds("exponent", found.interval),
                 "interval_from": found.interval_from, "coefficient": found.coefficient, "batch_sizes": found.points,
                 "left_out_at_edge": sum(not o.inside for o in optima if o.edge or o.vertex)}
            )  # fmt: skip
    return rows, laws
