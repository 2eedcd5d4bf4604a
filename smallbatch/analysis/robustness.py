"""Measure robustness: the increase in loss when a tuned hyperparameter is off by a factor.

One hyperparameter of the tuned config is multiplied and the others are kept (Marek et al. 2025, arXiv 2507.07101,
figure 3). A diverged config has a loss of +inf. Two numbers summarize such a profile. The basin is the range of
multipliers within delta of the lowest loss; its width is measured in log2. The regret of a multiplier is its loss minus
the lowest loss; the largest regret within [1/8, 8] is reported.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from smallbatch.analysis.read.run_table import Group, Point, RunTable
from smallbatch.analysis.report import drawing
from smallbatch.analysis.report.options import Options
from smallbatch.analysis.report.section import Analysis, Figure, Finding, Section, Table
from smallbatch.analysis.report.tables import Row, batch_text, column, group_columns, key_text, listed, split
from smallbatch.analysis.stats import intervals
from smallbatch.analysis.stats.equal_flops import bounds, choose
from smallbatch.analysis.stats.intervals import Interval

REGRET_LOG2 = 3.0  # multipliers from 1/8 to 8
DECAYS = ("b1", "b2", "weight_average_b")
MAX_RISE_NATS = 0.5  # upper limit of the y axis


@dataclass(frozen=True, eq=False)
class Profile:
    """Mean losses along one hyperparameter, with the others as tuned; values ascending, one per config."""

    hyperparameter: str
    values: np.ndarray
    log2_multipliers: np.ndarray
    mean_nats: np.ndarray
    seeds: np.ndarray
    missing: int  # configs without a result
    tuned: int  # index of the tuned config

    @property
    def rise_nats(self) -> np.ndarray:
        """Loss minus the lowest loss of the profile."""
        return self.mean_nats - self.mean_nats.min()

    @property
    def edge_of_grid(self) -> str | None:
        """Whether the tuned value is the lowest or the highest of the grid; None if it is neither."""
        return {0: "lowest", len(self.values) - 1: "highest"}.get(self.tuned)


def scale(hyperparameter: str, value: Any) -> float:
    """Return a hyperparameter on a scale that can be multiplied; NaN if there is none, as for text and zero.

    A decay per step is converted to its half-life in steps, ln(1/2) / ln(b): 0.99 and 0.999 are a factor of 10 apart.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return math.nan
    if key_text(hyperparameter) in DECAYS:
        return math.log(0.5) / math.log(value) if value < 1 else math.nan
    return float(value)


def scale_text(hyperparameter: str) -> str:
    """Return the name of the multiplied quantity, which is the half-life of a decay."""
    name = key_text(hyperparameter)
    return f"half-life of {name}" if name in DECAYS else name


def hyperparameters(group: Group) -> list[str]:
    """Return the hyperparameters with two or more values that can be multiplied, sorted by name."""
    names = sorted({name for point in group.points for name, _ in point})
    scales = {name: {scale(name, value) for value in group.values(name)} for name in names}
    return [name for name in names if sum(not math.isnan(value) for value in scales[name]) > 1]


def profile(group: Group, hyperparameter: str) -> Profile | None:
    """Return the slice of the grid through the tuned config; None if fewer than two of its configs have a result."""
    choice = choose(group)
    if choice is None or math.isnan(at := scale(hyperparameter, dict(group.points[choice.index]).get(hyperparameter))):
        return None

    def others(point: Point) -> Point:
        return tuple(item for item in point if item[0] != hyperparameter)

    tuned_others = others(group.points[choice.index])
    cells = [
        (value, p)
        for p, point in enumerate(group.points)
        if others(point) == tuned_others
        and not math.isnan(value := scale(hyperparameter, dict(point).get(hyperparameter)))
    ]
    known = sorted((value, p) for value, p in cells if not np.isnan(group.mean_P[p]))
    if len(known) < 2:
        return None
    values = np.array([value for value, _ in known])
    index = [p for _, p in known]
    return Profile(
        hyperparameter=hyperparameter,
        values=values,
        log2_multipliers=np.log2(values / at),
        mean_nats=group.mean_P[index],
        seeds=(~np.isnan(group.loss_PxS[index])).sum(1),
        missing=len(cells) - len(known),
        tuned=index.index(choice.index),
    )


def width_log2(log2_x: np.ndarray, mean_nats: np.ndarray, delta_nats: float) -> tuple[float, bool]:
    """Return the width of the basin around the minimum in log2, and whether the basin reaches an edge of the grid.

    The basin is the connected set of multipliers with loss <= minimum + delta, interpolated linearly in log2 between
    configs. Next to a diverged config it ends at the last config that did not diverge.
    """
    level = mean_nats.min() + delta_nats
    ends, at_edge = [], False
    for direction in (-1, 1):
        inside = int(mean_nats.argmin())
        while 0 <= (outside := inside + direction) < len(log2_x) and mean_nats[outside] <= level:
            inside = outside
        end = log2_x[inside]
        if not 0 <= outside < len(log2_x):
            at_edge = True
        elif np.isfinite(mean_nats[outside]):
            fraction = (level - mean_nats[inside]) / (mean_nats[outside] - mean_nats[inside])
            end += fraction * (log2_x[outside] - log2_x[inside])
        ends.append(end)
    return float(ends[1] - ends[0]), at_edge


def cell_spans_log2(log2_x: np.ndarray, losses: np.ndarray, delta_nats: float) -> tuple[np.ndarray, np.ndarray]:
    """Return two spans in log2: of the configs inside the basin, and of their first neighbours outside it.

    The width of any basin with a single minimum is between the two. The outer span is infinite if the basin reaches an
    edge of the grid. `losses` has shape [..., configs], and the results have its leading dimensions.
    """
    within = losses <= losses.min(-1, keepdims=True) + delta_nats
    index, last = np.arange(len(log2_x)), len(log2_x) - 1
    lowest = losses.argmin(-1)[..., None]
    left = np.where(~within & (index < lowest), index, -1).max(-1)
    right = np.where(~within & (index > lowest), index, last + 1).min(-1)
    outer = log2_x[np.minimum(right, last)] - log2_x[np.maximum(left, 0)]
    return log2_x[right - 1] - log2_x[left + 1], np.where((left < 0) | (right > last), np.inf, outer)


def no_width_because(found: Profile, delta_nats: float) -> str | None:
    """Return the reason why a profile has no width; None if it has one.

    A column of multipliers is relative to the tuned config, multiplier 1; without its result, the lowest loss is
    unknown. Two configs do not determine a basin, since one of them is always the lowest. A basin around a single
    config may have any width below the distance between its neighbours: a parabola and a cusp through the same three
    points differ by a factor of 2.
    """
    if key_text(found.hyperparameter).lower().endswith("multiplier") and not np.isclose(found.values, 1.0).any():
        return "no run at the tuned config (multiplier 1) has a result"
    if len(found.values) < 3:
        return "only two of its values have a result"
    inner, outer = cell_spans_log2(found.log2_multipliers, found.mean_nats, delta_nats)
    if inner > 0:
        return None
    less = f"it spans less than a factor of {2.0**outer:.3g}, and " if np.isfinite(outer) else ""
    return f"{less}only one value of the grid is in it"


def largest_regret(found: Profile) -> float:
    """Return the largest regret among the multipliers within [1/8, 8]; +inf if one of them diverged."""
    return float(found.rise_nats[np.abs(found.log2_multipliers) <= REGRET_LOG2 + 1e-6].max())


def width_interval(group: Group, found: Profile, delta_nats: float) -> Interval | None:
    """Return the interval of a width, from `cell_spans_log2` of simulated losses.

    It is valid for any shape of the basin between the configs; the width itself is interpolated linearly. Its upper end
    is infinite if the basin may extend beyond the grid. tests/test_coverage.py tests its coverage.
    """
    noise = choose(group).noise  # type: ignore[union-attr]  # a profile has a tuned config
    if noise.df == 0:
        return None
    draws = intervals.draw_means(found.mean_nats, found.seeds, noise)
    inner, outer = cell_spans_log2(found.log2_multipliers, found.mean_nats, delta_nats)
    inner_draws, outer_draws = cell_spans_log2(found.log2_multipliers, draws, delta_nats)
    low = intervals.both_ways(float(inner), inner_draws)
    high = intervals.both_ways(float(outer), outer_draws) if np.isfinite(outer) else (0.0, math.inf)
    return (max(0.0, low[0]), high[1]) if low and high else None


def profile_rows(group: Group, found: Profile) -> list[Row]:
    """Return the loss at each multiplier of a profile."""
    return [
        {
            **group_columns(group),
            "hyperparameter": found.hyperparameter,
            "value": float(value),
            "multiplier": float(2.0**log2),
            "loss_nats": float(mean),
            "rise_nats": float(rise),
            "seeds": int(seeds),
        }
        for value, log2, mean, rise, seeds in zip(
            found.values, found.log2_multipliers, found.mean_nats, found.rise_nats, found.seeds, strict=True
        )
    ]


def summary_row(group: Group, found: Profile, delta_nats: float) -> Row:
    """Return the width and the largest regret of a profile."""
    reason = no_width_because(found, delta_nats)
    width, at_edge = width_log2(found.log2_multipliers, found.mean_nats, delta_nats)
    regret_range = np.clip(found.log2_multipliers[[0, -1]], -REGRET_LOG2, REGRET_LOG2)
    return {
        **group_columns(group),
        "hyperparameter": found.hyperparameter,
        "tuned_value": float(found.values[found.tuned]),
        "width_log2": None if reason else width,
        **bounds("width_log2", None if reason else width_interval(group, found, delta_nats)),
        "wider_than_grid": at_edge and not reason,
        "no_width_because": reason,
        "largest_regret_nats": largest_regret(found),
        "regret_from_multiplier": float(2.0 ** regret_range[0]),
        "regret_to_multiplier": float(2.0 ** regret_range[1]),
        "cells": len(found.values),
        "missing": found.missing,
        "edge_of_grid": found.edge_of_grid,
    }


def robustness(runs: RunTable, delta_nats: float) -> tuple[list[Row], list[Row]]:
    """Return the summary of each profile, and the points of all profiles."""
    profiles = [
        (group, found)
        for group in runs.groups
        for name in hyperparameters(group)
        if (found := profile(group, name)) is not None
    ]
    summaries = [summary_row(group, found, delta_nats) for group, found in profiles]
    return summaries, [row for group, found in profiles for row in profile_rows(group, found)]


def tables(runs: RunTable, options: Options) -> list[Table]:
    summaries, points = robustness(runs, options.delta_nats)
    return [
        Table("robustness", "Robustness to each hyperparameter", summaries),
        Table("robustness_profiles", "Increase in loss against the multiplier", points, in_summary=False),
    ]


def figures(analysis: Analysis) -> Iterator[Figure]:
    profiles = split(analysis.rows("robustness_profiles"), "setting", "arm", "hyperparameter")
    for (setting, method, name), rows in profiles.items():
        caption = (
            f"{method}: increase in loss when the tuned {scale_text(name)} is multiplied{analysis.in_setting(setting)}."
            f" Dashed: {analysis.options.delta_nats:g} nats. Crosses: diverged."
        )
        axes = _profile_axes(method, name, rows, analysis.options.delta_nats)
        yield Figure(f"rise-{setting}-{method}-{name}", axes, caption, "robustness_profiles")
    for (setting, name), rows in split(analysis.rows("robustness"), "setting", "hyperparameter").items():
        if len({row["batch_size"] for row in rows}) < 2:
            continue
        title = f"log2 of the width of the basin of {scale_text(name)}"
        axes = drawing.batch_axes(title, [row["batch_size"] for row in rows])
        for own, style in drawing.by_method(analysis.runs.arms, rows):
            axes.plot(column(own, "batch_size"), column(own, "width_log2"), **style)
            wider = [row for row in own if row["wider_than_grid"]]
            triangle = {"linestyle": "none", "marker": (3, 0, 0), "markersize": 9, "fillstyle": "none"}
            axes.plot(column(wider, "batch_size"), column(wider, "width_log2"), color=style["color"], **triangle)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        caption = (
            f"Width of the range of {scale_text(name)} within {analysis.options.delta_nats:g} nats of the lowest loss"
            f"{analysis.in_setting(setting)}, in factors of 2. Triangles: lower bounds, since it reaches the edge of "
            "the grid."
        )
        yield Figure(f"width-{setting}-{name}", axes, caption, "robustness")


def _profile_axes(method: str, name: str, rows: Sequence[Row], delta_nats: float) -> Axes:
    """Plot the increase in loss against the multiplier, one line per batch size; crosses if diverged."""
    rises = column(rows, "rise_nats")
    top = float(np.clip(1.15 * rises[np.isfinite(rises)].max(), 3 * delta_nats, MAX_RISE_NATS))
    axes = drawing.new_axes(f"tuned {scale_text(name)} x", f"{method}: increase in loss (nats) by batch size")
    for (size,), own in split(rows, "batch_size").items():
        x, rise = column(own, "multiplier"), column(own, "rise_nats")
        known = np.isfinite(rise)
        colour = drawing.batch_colour(size)
        axes.plot(x[known], rise[known], color=colour, marker="o", markersize=3.5, label=batch_text(size))
        axes.plot(x[~known], np.full((~known).sum(), 0.97 * top), "x", color=colour)
    axes.axhline(delta_nats, color=drawing.INK, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_xscale("log", base=2)
    span = np.log2(column(rows, "multiplier"))
    ticks = np.arange(np.floor(span.min()), np.ceil(span.max()) + 1)
    ticks = ticks[:: max(1, -(-len(ticks) // 9))]
    axes.set_xticks(2.0**ticks, [drawing.multiplier_text(tick) for tick in ticks])
    axes.set_ylim(-0.03 * top, top)
    return axes


def findings(analysis: Analysis) -> Iterator[Finding]:
    rows = split(analysis.rows("robustness"), "setting", "arm", "hyperparameter")
    for (setting, method, name), own in rows.items():
        within = f"range of {scale_text(name)} within {analysis.options.delta_nats:g} nats of the lowest loss"
        known = sorted((row for row in own if row["width_log2"] is not None), key=lambda row: row["width_log2"])
        shown = known if len(known) < 3 else [known[0], known[-1]]
        parts = [
            f"{'at least ' if row['wider_than_grid'] else ''}a factor of {2.0 ** row['width_log2']:.2g} at batch size "
            f"{batch_text(row['batch_size'])}"
            for row in shown
        ]
        if parts:
            extremes = " (narrowest and widest)" if len(known) > 2 else ""
            yield Finding("Robustness", f"{method}: the {within} spans {listed(parts)}{extremes}.", setting)
        unknown = [row for row in own if row["no_width_because"]]
        for (reason,), of_reason in split(unknown, "no_width_because").items():
            sizes = listed([batch_text(row["batch_size"]) for row in of_reason])
            text = f"{method}: the width of the {within} is unknown at batch size {sizes}: {reason}."
            yield Finding("Robustness", text, setting)


def warnings(analysis: Analysis) -> Iterator[str]:
    for row in analysis.rows("robustness"):
        if row["edge_of_grid"]:
            yield (
                f"{analysis.grid_text(row)}: the best {key_text(row['hyperparameter'])} is the {row['edge_of_grid']} "
                "value of its grid, so the optimum may be outside. Widen the grid."
            )


SECTION = Section(
    name="robustness",
    title="Robustness to hyperparameters",
    description=(
        "One hyperparameter of the tuned config is multiplied, the others are kept (Marek et al. 2025, figure 3). The "
        "basin is the range of multipliers within delta of the lowest loss. The regret of a multiplier is its loss "
        "minus the lowest loss; the largest regret is taken over multipliers from 1/8 to 8, as far as the grid reaches."
    ),
    tables=tables,
    figures=figures,
    findings=findings,
    warnings=warnings,
    empty=lambda analysis: "Robustness needs a hyperparameter with two values or more at the same batch size.",
)
