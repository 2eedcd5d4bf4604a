"""Best learning rate against batch size, and the exponent of the law between them.

One idea: the best cell jumps with the grid; the vertex of a parabola through the cells around it does not. Where the
best cell lies at the edge of its grid there is no optimum to speak of: it is flagged, and stays out of the fit.
"""

from dataclasses import dataclass

import numpy as np

from smallbatch.analysis import intervals, power_law
from smallbatch.analysis.equal_flops import bounds, choose
from smallbatch.analysis.power_law import PowerLaw
from smallbatch.analysis.robustness import Profile, profile
from smallbatch.analysis.sheets import Row
from smallbatch.analysis.table import Group, RunTable

REACH = 2  # cells on either side of the best one that the parabola goes through
LEARNING_RATE = "optimizer.peak_lr"


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best learning rate of one grid; `draws` under the noise over seeds, None where that is unknown."""

    batch_size: float
    tuned: float  # that of the chosen cell
    vertex: float | None  # that of the parabola; None at an edge, or where three cells around it are not finite
    edge: str | None
    draws: np.ndarray | None


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
        return None if np.isnan(run.learning_rate) else Optimum(group.batch_size, run.learning_rate, None, None, None)
    rate = found.values[found.tuned] if np.isnan(run.learning_rate) else run.learning_rate
    edge = {0: "lowest", len(found.values) - 1: "highest"}.get(found.tuned)
    low, high = max(0, found.tuned - REACH), min(len(found.values), found.tuned + REACH + 1)
    around = np.array([i for i in range(low, high) if np.isfinite(found.mean_nats[i])])
    if edge or len(around) < 3:
        return Optimum(group.batch_size, float(rate), None, edge, None)
    x, means = found.log2_multipliers[around], found.mean_nats[around]
    return Optimum(
        group.batch_size,
        float(rate),
        float(rate * 2 ** vertex_log2(x, means)),
        None,
        _draws(group, found, around, rate),
    )


def _draws(group: Group, found: Profile, around: np.ndarray, rate: float) -> np.ndarray | None:
    noise = choose(group).noise  # type: ignore[union-attr]  # a profile has a tuned point
    if noise.df == 0:
        return None
    rng = intervals.generator("learning rate", group.setting, group.arm, group.batch_size)
    tables = intervals.draw_means(found.mean_nats[around], found.seeds[around], noise, rng)
    return rate * 2 ** vertex_log2(found.log2_multipliers[around], tables)


def law(optima: list[Optimum]) -> PowerLaw | None:
    """Fit best learning rate ~ batch size^p through the optima that are not at an edge; None with fewer than two.

    Where no grid was swept, as in a table of tuned values, the values themselves are fitted.
    """
    inside = [o for o in optima if o.vertex is not None]
    if not inside and all(o.edge is None for o in optima):
        inside = optima
    x = np.array([o.batch_size for o in inside])
    y = np.array([o.tuned if o.vertex is None else o.vertex for o in inside])
    draws = [o.draws for o in inside if o.draws is not None]
    return power_law.fit(x, y, np.stack(draws, axis=1) if draws and len(draws) == len(inside) else None)


def learning_rates(table: RunTable) -> tuple[list[Row], list[Row]]:
    """Return the best learning rate of each grid, and the exponent of each arm's law."""
    rows: list[Row] = []
    laws: list[Row] = []
    for (setting, arm), groups in table.series().items():
        optima = [found for group in groups if (found := optimum(group))]
        for o in optima:
            interval = intervals.central(o.draws) if o.draws is not None else None
            rows.append(
                {"setting": setting, "arm": arm, "batch_size": o.batch_size, "tuned_learning_rate": o.tuned,
                 "best_learning_rate": o.vertex, **bounds("best_learning_rate", interval), "edge_of_grid": o.edge}
            )  # fmt: skip
        found = law(optima)
        if found:
            laws.append(
                {"setting": setting, "arm": arm, "exponent": found.exponent, **bounds("exponent", found.interval),
                 "interval_from": found.interval_from, "coefficient": found.coefficient, "batch_sizes": found.points,
                 "left_out_at_edge": sum(o.edge is not None for o in optima)}
            )  # fmt: skip
    return rows, laws
