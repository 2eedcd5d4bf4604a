"""Compute the cost to reach a target loss: FLOPs, tokens, steps and seconds."""

from collections.abc import Iterator

import numpy as np

from smallbatch.analysis.budgets import curve_kind, curve_of, no_records
from smallbatch.analysis.read.run_table import Group, Run, RunTable, mean_over_seeds
from smallbatch.analysis.report import drawing
from smallbatch.analysis.report.options import Options
from smallbatch.analysis.report.section import Analysis, Figure, Finding, Section, Table
from smallbatch.analysis.report.tables import Row, batch_text, group_columns, split
from smallbatch.analysis.stats import curves
from smallbatch.analysis.stats.curves import AXES

MAX_NAMED = 4  # grids listed by name in a caption
UNITS = {"flops": "FLOPs", "secs": "seconds"}


def costs_of_points(group: Group, kind: str, axis: str, target_nats: float) -> np.ndarray:
    """Return the cost to reach the target, [P, S]; +inf if a run never reaches it, NaN if there is no run."""
    costs = np.full((len(group.points), len(group.seeds)), np.nan)
    for p, row in enumerate(group.runs):
        for s, run in enumerate(row):
            if run is not None and not np.isnan(run.final_loss_nats):
                curve = curve_of(run, kind)
                costs[p, s] = curves.cost_to_reach(curve, axis, target_nats) if curve else np.inf
    return costs


def cheapest(costs_PxS: np.ndarray) -> tuple[float, int | None]:
    """Return the cost and the index of the cheapest point, by the geometric mean over its seeds.

    Returns (+inf, None) if no point reaches the target with all its seeds, (NaN, None) if costs were not recorded.
    """
    means = mean_over_seeds(np.log(costs_PxS))
    if not np.isfinite(means).any():
        return (np.nan if np.isnan(means).all() else np.inf), None
    index = int(np.argmin(np.where(np.isnan(means), np.inf, means)))
    return float(np.exp(means[index])), index


def common_target(groups: list[Group], kind: str, fraction: float) -> float | None:
    """Return the lowest mean loss that at least this fraction of the grids reaches; None if none reaches any.

    It is rounded up to 0.01 nats. If only the ends of the runs are known, it is exact, since the runs may have been
    stopped at this loss.
    """
    reached = []
    for group in groups:
        means = mean_over_seeds(np.array([[_lowest_loss(run, kind) for run in row] for row in group.runs], float))
        if np.isfinite(means).any():
            reached.append(float(np.nanmin(means)))
    if not reached:
        return None
    needed = min(len(reached), max(1, int(np.ceil(fraction * len(groups)))))
    target = sorted(reached)[needed - 1]
    return target if kind == "end" else float(np.ceil(100 * target - 1e-9) / 100)


def _lowest_loss(run: Run | None, kind: str) -> float:
    if run is None or np.isnan(run.final_loss_nats):
        return np.nan
    curve = curve_of(run, kind)
    return float(np.nanmin(curve.loss_nats)) if curve and np.isfinite(curve.loss_nats).any() else np.inf


def cost_ratios(runs: RunTable, target_nats: float | None = None) -> list[Row]:
    """Return the cost of each grid's cheapest point to reach a target loss, and its ratio to the cheapest grid.

    The default target is the lowest loss that half of the grids of a setting reach.
    """
    kind, rows = curve_kind(runs), []
    for setting in runs.settings:
        groups = [group for group in runs.groups if group.setting == setting]
        target = common_target(groups, kind, 0.5) if target_nats is None else target_nats
        if target is None:
            continue
        costs = {axis: [cheapest(costs_of_points(group, kind, axis, target))[0] for group in groups] for axis in AXES}
        lowest = {axis: min(filter(np.isfinite, costs[axis]), default=np.nan) for axis in UNITS}
        for i, group in enumerate(groups):
            row = {**group_columns(group), "target_loss_nats": target, "loss": kind}
            row |= {axis: costs[axis][i] for axis in AXES}
            rows.append(row | {f"{axis}_ratio": costs[axis][i] / lowest[axis] for axis in UNITS})
    return rows


def tables(runs: RunTable, options: Options) -> list[Table]:
    return [Table("cost_to_target", "Cost to reach a loss", cost_ratios(runs, options.target_loss_nats))]


def figures(analysis: Analysis) -> Iterator[Figure]:
    for (setting,), rows in split(analysis.rows("cost_to_target"), "setting").items():
        for name, unit in UNITS.items():
            reached = [row for row in rows if np.isfinite(row[f"{name}_ratio"])]
            if len(reached) < 2:
                continue
            target = f"{reached[0]['target_loss_nats']:g} nats"
            title = f"{unit} to {target}, relative to the cheapest"
            axes = drawing.against_batch_size(title, reached, f"{name}_ratio", analysis.runs.arms)
            drawing.count_axis(axes.yaxis)
            never = [f"{row['arm']} at {batch_text(row['batch_size'])}" for row in rows if np.isinf(row[name])]
            names = ", ".join(never) if len(never) <= MAX_NAMED else f"{len(never)} of {len(rows)} grids"
            caption = f"{unit[0].upper()}{unit[1:]} to reach {target}, relative to the cheapest grid"
            caption += f"{analysis.in_setting(setting)}." + (f" Target not reached by {names}." if never else "")
            yield Figure(f"cost-{setting}-{name}", axes, caption, "cost_to_target")


def findings(analysis: Analysis) -> Iterator[Finding]:
    for (setting,), rows in split(analysis.rows("cost_to_target"), "setting").items():
        for axis, unit in UNITS.items():
            reached = sorted((row for row in rows if np.isfinite(row[axis])), key=lambda row: row[axis])
            if len(reached) < 2:
                continue
            least, most = reached[0], reached[-1]
            kind = "" if least["loss"] == "end" else f"{least['loss']} "
            text = (
                f"{least['arm']} at batch size {batch_text(least['batch_size'])} needs the fewest {unit} to reach a "
                f"{kind}loss of {least['target_loss_nats']:g} nats; {most['arm']} at {batch_text(most['batch_size'])} "
                f"needs the most, {most[f'{axis}_ratio']:.3g}x as many"
            )
            missed = len(rows) - len(reached)
            text += f"; {missed} of {len(rows)} grids did not reach it." if missed else "."
            yield Finding("Cost to reach a loss", text, setting)


def empty(analysis: Analysis) -> str:
    return f"{no_records(analysis)}a cost needs two grids that reach the same loss, with their FLOPs or seconds."


SECTION = Section(
    name="cost",
    title="Cost to reach a loss",
    description="Cost of the cheapest config of each grid until its smoothed loss first reaches the target.",
    tables=tables,
    figures=figures,
    findings=findings,
    empty=empty,
)
