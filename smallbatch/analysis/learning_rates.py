"""Estimate the best learning rate at each batch size, and fit a power law to the estimates.

The estimate is the vertex of the parabola through the best config of a grid and its two neighbours. It is approximate:
loss curves are steeper towards high learning rates, which shifts the vertex by up to a third of a grid step. The
interval assumes only that the loss has a single minimum. It extends to the neighbours of all configs that do not differ
significantly from the best one (intervals.maybe_best). Around a single best config it is two grid steps wide. If such a
config is at the edge of the grid, the interval is open on that side.

If the best config is at the edge of its grid, the optimum is unknown: it is flagged and left out of the fit.
tests/test_coverage.py tests the coverage of both intervals on parabolas, on basins that are 1.25, 2 and 10 times as
steep to the right, exponential to the right, or flat to the left, and on cusps; on grids of factors 2 and sqrt 2; with
1 (exponent only), 3 and 7 seeds; and with noise that the learning rates share or not.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from smallbatch.analysis.read.naming import LEARNING_RATE
from smallbatch.analysis.read.run_table import Group, RunTable
from smallbatch.analysis.report import drawing
from smallbatch.analysis.report.options import Options
from smallbatch.analysis.report.section import Analysis, Figure, Finding, Section, Table
from smallbatch.analysis.report.tables import Row, column, group_columns, interval_text, split
from smallbatch.analysis.robustness import Profile, profile
from smallbatch.analysis.stats import intervals, power_law
from smallbatch.analysis.stats.equal_flops import bounds, choose
from smallbatch.analysis.stats.intervals import Interval
from smallbatch.analysis.stats.power_law import PowerLaw


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best learning rate of one grid."""

    batch_size: float
    tuned: float  # of the selected config
    vertex: float | None = None  # minimum of the parabola; None at an edge
    edge: str | None = None
    interval: Interval | None = None  # of the vertex; None with a single seed
    half_width_log: float = np.nan  # of the log of this interval; with a single seed, of the best config's neighbours

    @property
    def inside(self) -> bool:
        """Whether the optimum is known to be inside the grid."""
        return self.vertex is not None and (self.interval is None or bool(np.isfinite(self.half_width_log)))


def vertex_log2(log2_x: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return the x of the minimum of the least-squares parabola through each row of losses, [..., configs].

    It is clipped to the range of x. If a parabola opens downwards, it is the end with the lower loss.
    """
    centre = log2_x.mean()
    design = np.vander(log2_x - centre, 3)
    curvature, slope, _ = np.moveaxis(losses @ np.linalg.pinv(design).T, -1, 0)
    ends = np.where(losses[..., 0] <= losses[..., -1], log2_x[0], log2_x[-1])
    safe = np.where(curvature > 0, curvature, 1.0)
    found = np.where(curvature > 0, centre - slope / (2 * safe), ends)
    return np.clip(found, log2_x[0], log2_x[-1])


def optimum(group: Group, hyperparameter: str = LEARNING_RATE) -> Optimum | None:
    """Return the best learning rate of a grid; None if no run has a loss or the learning rate is unknown."""
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
    """Return the outer neighbours of the configs that may be the best; infinite beyond the edges of the grid.

    The minimum of a function with a single minimum is between the neighbours of its best config. With a single seed,
    the config with the lowest loss is the best.
    """
    may_be_best = found.mean_nats == found.mean_nats.min()
    if noise.df:
        may_be_best = intervals.maybe_best(found.mean_nats, found.seeds, noise)
    x = np.concatenate([[-np.inf], found.log2_multipliers, [np.inf]])
    index = np.flatnonzero(may_be_best)
    return float(x[index[0]]), float(x[index[-1] + 2])


def law(optima: list[Optimum]) -> PowerLaw | None:
    """Fit best learning rate ~ batch size^p to the optima inside their grids; None with fewer than two.

    If no grid varies the learning rate, as in a file of tuned values, these values are fitted.
    """
    inside = [best for best in optima if best.inside]
    if not inside and all(best.edge is None and best.vertex is None for best in optima):
        return power_law.fit(*np.array([(best.batch_size, best.tuned) for best in optima], float).reshape(-1, 2).T)
    points = np.array([(best.batch_size, best.vertex, best.half_width_log) for best in inside], float).reshape(-1, 3)
    return power_law.fit(*points.T)


def learning_rates(runs: RunTable) -> tuple[list[Row], list[Row]]:
    """Return the best learning rate of each grid, and the law of each method."""
    rows: list[Row] = []
    laws: list[Row] = []
    for (setting, method), groups in runs.series().items():
        found = [(group, best) for group in groups if (best := optimum(group))]
        rows += [
            {
                **group_columns(group),
                "tuned_learning_rate": best.tuned,
                "best_learning_rate": best.vertex,
                **bounds("best_learning_rate", best.interval),
                "edge_of_grid": best.edge,
            }
            for group, best in found
        ]
        optima = [best for _, best in found]
        if fitted := law(optima):
            laws.append(
                {
                    "setting": setting,
                    "arm": method,
                    "exponent": fitted.exponent,
                    **bounds("exponent", fitted.interval),
                    "interval_from": fitted.interval_from,
                    "coefficient": fitted.coefficient,
                    "batch_sizes": fitted.points,
                    "left_out_at_edge": sum(not best.inside for best in optima if best.edge or best.vertex),
                }
            )
    return rows, laws


def tables(runs: RunTable, options: Options) -> list[Table]:
    rows, laws = learning_rates(runs)
    return [
        Table("learning_rates", "Best learning rate", rows),
        Table("learning_rate_laws", "Learning rate against batch size", laws),
    ]


def figures(analysis: Analysis) -> Iterator[Figure]:
    laws = split(analysis.rows("learning_rate_laws"), "setting", "arm")
    for (setting,), rows in split(analysis.rows("learning_rates"), "setting").items():
        if len({row["batch_size"] for row in rows}) < 2:
            continue
        axes = drawing.batch_axes("best learning rate", [row["batch_size"] for row in rows])
        for own, style in drawing.by_method(analysis.runs.arms, rows):
            estimated = any(row["best_learning_rate"] for row in own)  # otherwise no grid varies the learning rate
            name = "best_learning_rate" if estimated else "tuned_learning_rate"
            inside = [row for row in own if row[name] and not row["edge_of_grid"]]
            axes.plot(column(inside, "batch_size"), column(inside, name), **{**style, "linestyle": "none"})
            closed = [row for row in inside if row["best_learning_rate_low"]]  # an open interval starts at 0
            drawing.plot_intervals(axes, closed, "best_learning_rate", style["color"])
            edges = [row for row in own if row["edge_of_grid"]]
            dash = {"linestyle": "none", "marker": "_", "color": style["color"], "markersize": 9}
            axes.plot(column(edges, "batch_size"), column(edges, "tuned_learning_rate"), **dash)
            if fitted := laws.get((setting, own[0]["arm"])):
                x = column(own, "batch_size")
                y = fitted[0]["coefficient"] * x ** fitted[0]["exponent"]
                axes.plot(x, y, color=style["color"], linewidth=0.9)
        drawing.count_axis(axes.yaxis)
        caption = (
            f"Best learning rate against batch size{analysis.in_setting(setting)}; lines: fitted power laws; dashes: "
            "the best config is at the edge of its grid and is not fitted."
        )
        yield Figure(f"learning-rate-{setting}", axes, caption, "learning_rates")


def findings(analysis: Analysis) -> Iterator[Finding]:
    for row in analysis.rows("learning_rate_laws"):
        interval = interval_text(row, "exponent", ".2f") or " (no interval: it needs three batch sizes)"
        text = (
            f"{row['arm']}: the best learning rate scales as batch size^{row['exponent']:.2f}{interval}, fitted to "
            f"{row['batch_sizes']} batch sizes"
        )
        left_out = row["left_out_at_edge"]
        text += f"; {left_out} left out, since their optimum is at the edge of the grid." if left_out else "."
        yield Finding("Learning rate", text, row["setting"])


def empty(analysis: Analysis) -> str:
    one = "All runs have the same batch size; " if len(analysis.runs.batch_sizes) == 1 else ""
    return f"{one}the figure needs the best learning rates of two batch sizes."


SECTION = Section(
    name="rates",
    title="Learning rate against batch size",
    description=(
        "The vertex of a parabola through the best config and its neighbours, in the logarithm of the learning rate. "
        "Its interval extends to the neighbours of all configs that do not differ significantly from the best one."
    ),
    tables=tables,
    figures=figures,
    findings=findings,
    empty=empty,
)
