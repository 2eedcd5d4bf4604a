"""Loss against FLOPs, tokens, steps and seconds; what it costs to reach a loss.

One idea: at every budget each grid shows its best cell of that moment, the lower envelope of its curves. Beware: where
the learning rate falls to zero at the end of a run, a loss halfway is not what a run of half the length would reach.
"""

import functools
from collections import defaultdict

import numpy as np

from smallbatch.analysis.read.run_table import Group, Run, RunTable, mean_over_seeds
from smallbatch.analysis.report.tables import Row
from smallbatch.analysis.stats import curves
from smallbatch.analysis.stats.curves import AXES, Curve

VALIDATIONS = 5  # records from which on the validation loss makes a curve
PLACES = 40  # of an envelope
BUDGET_FRACS = (0.125, 0.25, 0.5, 1.0)


def curve_kind(table: RunTable) -> str:
    """Return which loss the curves are of, one for all runs: validation, training or, without records, end."""
    done = [run for run in table.runs if run.status == "done"]
    if done and all(run.validation and len(run.validation.steps) >= VALIDATIONS for run in done):
        return "validation"
    return "training" if done and all(run.training and len(run.training.steps) > 1 for run in done) else "end"


@functools.lru_cache(maxsize=100_000)
def curve_of(run: Run, kind: str) -> Curve | None:
    """Return a run's curve of that kind, smoothed; None for a run that came to nothing."""
    if run.status not in ("done", "diverged"):
        return None
    if kind == "end":
        steps = {axis: getattr(run, axis) for axis in AXES}
        return curves.end_of_run(run.loss_nats, **steps) if run.status == "done" else None
    curve = run.validation if kind == "validation" else run.training
    return curves.smoothed(curve) if curve is not None and len(curve.steps) else None


def envelope(group: Group, kind: str, axis: str, budgets: np.ndarray) -> np.ndarray:
    """Return the best loss of a grid at each budget: min over points of the mean over seeds; NaN where unknown."""
    loss_PxSxK = np.full((len(group.points), len(group.seeds), len(budgets)), np.nan)
    for p, row in enumerate(group.runs):
        for s, run in enumerate(row):
            curve = curve_of(run, kind) if run else None
            if run and curve:
                loss_PxSxK[p, s] = curves.loss_at(curve, axis, budgets, diverged=run.status == "diverged")
    means_PxK = np.stack([mean_over_seeds(loss_PxSxK[:, :, k]) for k in range(len(budgets))], axis=1)
    best = np.where(np.isnan(means_PxK), np.inf, means_PxK).min(0)
    return np.where(np.isfinite(best), best, np.nan)


def loss_curves(table: RunTable) -> list[Row]:
    """Return the envelope of each grid at PLACES budgets, spaced evenly in their logarithm, on each axis."""
    kind, rows = curve_kind(table), []
    for group in table.groups if kind != "end" else ():
        for axis in AXES:
            found = [c for run in group.all_runs() if (c := curve_of(run, kind)) and np.isfinite(c.end[axis])]
            places = np.concatenate([c.axis(axis) for c in found]) if found else np.array([])
            if not (places > 0).any():
                continue
            budgets = np.geomspace(places[places > 0].min(), max(c.end[axis] for c in found), PLACES)
            losses = envelope(group, kind, axis, budgets)
            rows += [
                {"setting": group.setting, "arm": group.arm, "batch_size": group.batch_size, "axis": axis,
                 "budget": float(budget), "loss_nats": float(loss), "loss": kind}
                for budget, loss in zip(budgets, losses, strict=True)
                if np.isfinite(loss)
            ]  # fmt: skip
    return rows


def loss_at_budgets(table: RunTable) -> list[Row]:
    """Return the envelope of each grid at 1/8, 1/4, 1/2 and all of the budget that all of a setting's grids have."""
    kind, rows = curve_kind(table), []
    for setting in table.settings if kind != "end" else ():
        groups = [group for group in table.groups if group.setting == setting]
        for axis in AXES:
            ends = {id(g): [c.end[axis] for r in g.all_runs() if r.status == "done" and (c := curve_of(r, kind))]
                    for g in groups}  # fmt: skip
            usable = [g for g in groups if ends[id(g)] and np.isfinite(ends[id(g)]).all()]
            if not usable:
                continue
            common = min(float(np.median(ends[id(g)])) for g in usable)
            budgets = common * np.array(BUDGET_FRACS)
            for group in usable:
                losses = envelope(group, kind, axis, budgets)
                rows += [
                    {"setting": setting, "arm": group.arm, "batch_size": group.batch_size, "axis": axis,
                     "budget": float(budget), "loss_nats": float(loss), "loss": kind}
                    for budget, loss in zip(budgets, losses, strict=True)
                    if np.isfinite(loss)
                ]  # fmt: skip
    return rows


def costs_at_points(group: Group, kind: str, axis: str, target_nats: float) -> np.ndarray:
    """Return the cost to reach the target, [P, S]; +inf where a run never does, NaN where there is no run."""
    costs = np.full((len(group.points), len(group.seeds)), np.nan)
    for p, row in enumerate(group.runs):
        for s, run in enumerate(row):
            if run is None or np.isnan(run.final_loss_nats):
                continue
            curve = curve_of(run, kind)
            costs[p, s] = curves.cost_to_reach(curve, axis, target_nats) if curve else np.inf
    return costs


def cheapest(costs_PxS: np.ndarray) -> tuple[float, int | None]:
    """Return the cost of the cheapest point, a geometric mean over its seeds, and which it is.

    (+inf, None) where no point gets there with all its seeds, (NaN, None) where costs were not recorded.
    """
    means = mean_over_seeds(np.log(costs_PxS))
    if not np.isfinite(means).any():
        return (np.nan if np.isnan(means).all() else np.inf), None
    index = int(np.argmin(np.where(np.isnan(means), np.inf, means)))
    return float(np.exp(means[index])), index


def common_target(groups: list[Group], kind: str, share: float) -> float | None:
    """Return the lowest loss that at least this share of the grids reaches in the mean.

    Rounded up to 0.01 nats, for a person to remember; but not where only the ends of the runs are known, which may have
    been stopped at that very loss.
    """
    reached = []
    for group in groups:
        lowest = [[_lowest(run, kind) for run in row] for row in group.runs]
        means = mean_over_seeds(np.array(lowest, float))
        if np.isfinite(means).any():
            reached.append(float(np.nanmin(means)))
    if not reached:
        return None
    needed = min(len(reached), max(1, int(np.ceil(share * len(groups)))))
    target = sorted(reached)[needed - 1]
    return target if kind == "end" else float(np.ceil(100 * target - 1e-9) / 100)


def _lowest(run: Run | None, kind: str) -> float:
    if run is None or np.isnan(run.final_loss_nats):
        return np.nan
    curve = curve_of(run, kind)
    if curve is None or not np.isfinite(curve.loss_nats).any():
        return np.inf
    return float(np.nanmin(curve.loss_nats))


def cost_ratios(table: RunTable, target_nats: float | None = None) -> list[Row]:
    """Return what each grid's cheapest point costs to reach a target loss, and the ratio to the cheapest of a setting.

    The target, where none is given, is the lowest loss that half of a setting's grids reach.
    """
    kind, rows = curve_kind(table), []
    by_setting: dict[str, list[Group]] = defaultdict(list)
    for group in table.groups:
        by_setting[group.setting].append(group)
    for setting, groups in by_setting.items():
        target = common_target(groups, kind, 0.5) if target_nats is None else target_nats
        if target is None:
            continue
        costs = {axis: [cheapest(costs_at_points(g, kind, axis, target))[0] for g in groups] for axis in AXES}
        for i, group in enumerate(groups):
            row: Row = {"setting": setting, "arm": group.arm, "batch_size": group.batch_size,
                        "target_loss_nats": target, "loss": kind}  # fmt: skip
            for axis in AXES:
                row[axis] = costs[axis][i]
            for axis in ("flops", "secs"):
                least = min((cost for cost in costs[axis] if np.isfinite(cost)), default=np.nan)
                row[f"{axis}_ratio"] = costs[axis][i] / least
            rows.append(row)
    return rows
