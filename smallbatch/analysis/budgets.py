"""Compute the loss along the runs of each grid against FLOPs, tokens, steps and seconds.

At each budget, the loss of a grid is that of its best config at that point: the lower envelope of its curves. If the
learning rate decays to zero at the end of a run, an earlier loss is not what a shorter run would have reached.
"""

import functools
from collections.abc import Iterator

import numpy as np

from smallbatch.analysis.read.run_table import Group, Run, RunTable, mean_over_seeds
from smallbatch.analysis.report import drawing
from smallbatch.analysis.report.options import Options
from smallbatch.analysis.report.section import Analysis, Figure, Section, Table
from smallbatch.analysis.report.tables import Row, batch_text, column, group_columns, split
from smallbatch.analysis.stats import curves
from smallbatch.analysis.stats.curves import AXES, Curve

MIN_VALIDATIONS = 5  # a run needs this many validation records for a curve of the validation loss
ENVELOPE_POINTS = 40
MIN_LINE_POINTS = 3  # a shorter line is not drawn
BUDGET_FRACS = (0.125, 0.25, 0.5, 1.0)
AXIS_LABELS = {"flops": "training FLOPs", "steps": "optimizer steps", "secs": "seconds of training"}


def curve_kind(runs: RunTable) -> str:
    """Return which loss the curves show, the same for all runs: validation, training, or end if there are none."""
    done = [run for run in runs.runs if run.status == "done"]
    if done and all(run.validation and len(run.validation.steps) >= MIN_VALIDATIONS for run in done):
        return "validation"
    return "training" if done and all(run.training and len(run.training.steps) > 1 for run in done) else "end"


@functools.lru_cache(maxsize=100_000)
def curve_of(run: Run, kind: str) -> Curve | None:
    """Return the smoothed curve of a run; None if it has none of this kind."""
    if run.status not in ("done", "diverged"):
        return None
    if kind == "end":
        steps = {axis: getattr(run, axis) for axis in AXES}
        return curves.end_of_run(run.loss_nats, **steps) if run.status == "done" else None
    curve = run.validation if kind == "validation" else run.training
    return curves.smoothed(curve) if curve is not None and len(curve.steps) else None


def envelope(group: Group, kind: str, axis: str, budgets: np.ndarray) -> np.ndarray:
    """Return the lowest mean loss over seeds of a grid at each budget; NaN where it is unknown."""
    loss_PxSxK = np.full((len(group.points), len(group.seeds), len(budgets)), np.nan)
    for p, row in enumerate(group.runs):
        for s, run in enumerate(row):
            curve = curve_of(run, kind) if run else None
            if run and curve:
                loss_PxSxK[p, s] = curves.loss_at(curve, axis, budgets, diverged=run.status == "diverged")
    means_PxK = np.stack([mean_over_seeds(loss_PxSxK[:, :, k]) for k in range(len(budgets))], axis=1)
    best = np.where(np.isnan(means_PxK), np.inf, means_PxK).min(0)
    return np.where(np.isfinite(best), best, np.nan)


def _envelope_rows(group: Group, kind: str, axis: str, budgets: np.ndarray) -> list[Row]:
    return [
        {**group_columns(group), "axis": axis, "budget": float(budget), "loss_nats": float(loss), "loss": kind}
        for budget, loss in zip(budgets, envelope(group, kind, axis, budgets), strict=True)
        if np.isfinite(loss)
    ]


def loss_curves(runs: RunTable) -> list[Row]:
    """Return the envelope of each grid on each axis, at ENVELOPE_POINTS budgets with logarithmic spacing."""
    kind, rows = curve_kind(runs), []
    for group in runs.groups if kind != "end" else ():
        for axis in AXES:
            known = [curve for run in group.all_runs() if (curve := curve_of(run, kind))]
            found = [curve for curve in known if np.isfinite(curve.end[axis])]
            x = np.concatenate([curve.axis(axis) for curve in found]) if found else np.array([])
            if (x > 0).any():
                budgets = np.geomspace(x[x > 0].min(), max(curve.end[axis] for curve in found), ENVELOPE_POINTS)
                rows += _envelope_rows(group, kind, axis, budgets)
    return rows


def loss_at_budgets(runs: RunTable) -> list[Row]:
    """Return the envelope of each grid at 1/8, 1/4, 1/2 and all of the smallest budget in its setting."""
    kind, rows = curve_kind(runs), []
    for setting in runs.settings if kind != "end" else ():
        groups = [group for group in runs.groups if group.setting == setting]
        for axis in AXES:
            ends = {
                group: [
                    curve.end[axis]
                    for run in group.all_runs()
                    if run.status == "done" and (curve := curve_of(run, kind))
                ]
                for group in groups
            }
            usable = {group: float(np.median(end)) for group, end in ends.items() if end and np.isfinite(end).all()}
            for group in usable:
                rows += _envelope_rows(group, kind, axis, min(usable.values()) * np.array(BUDGET_FRACS))
    return rows


def tables(runs: RunTable, options: Options) -> list[Table]:
    return [
        Table("loss_at_budgets", "Loss at fractions of the budget", loss_at_budgets(runs)),
        Table("loss_curves", "Loss along the budget", loss_curves(runs), in_summary=False),
    ]


def figures(analysis: Analysis) -> Iterator[Figure]:
    for (setting, method), rows in split(analysis.rows("loss_curves"), "setting", "arm").items():
        for name, label in AXIS_LABELS.items():
            axes = drawing.new_axes(label, f"{method}: {rows[0]['loss']} loss (nats) by batch size")
            for (size,), own in split([row for row in rows if row["axis"] == name], "batch_size").items():
                if len(own) >= MIN_LINE_POINTS:
                    x, y = column(own, "budget"), column(own, "loss_nats")
                    axes.plot(x, y, color=drawing.batch_colour(size), label=batch_text(size))
            if axes.lines:
                drawing.count_axis(axes.xaxis)
                where = analysis.in_setting(setting)
                caption = f"{method}: lowest loss of the grid against {label}{where}, one line per batch size."
                yield Figure(f"curve-{setting}-{method}-{name}", axes, caption, "loss_curves")


def no_records(analysis: Analysis) -> str:
    """Return the start of a sentence if the runs have no records before their end."""
    return "These runs have no records before their end; " if curve_kind(analysis.runs) == "end" else ""


def empty(analysis: Analysis) -> str:
    if all("file" in source for source in analysis.runs.provenance):
        needs = "run directories, since a file of runs has only the final result of each run"
    else:
        needs = "metrics.jsonl with at least two records per run"
    return f"{no_records(analysis)}curves need {needs}."


SECTION = Section(
    name="curves",
    title="Loss along the budget",
    description=(
        "The lowest loss of each grid at every budget. If the learning rate decays to zero at the end of a run, an "
        "earlier loss is not what a shorter run would have reached."
    ),
    tables=tables,
    figures=figures,
    empty=empty,
)
