"""Loss of each method at each batch size at equal FLOPs, with its interval.

The best of many noisy trials is an optimistically biased estimate. Three losses are therefore given for each grid:
its best single run (what papers usually report), its lowest mean over seeds, and the mean of the selected cell over
held-out seeds, which were not used for the selection.
"""

import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np

from smallbatch.analysis.read.run_table import Group, RunTable, mean_over_seeds
from smallbatch.analysis.report.tables import Row, point_text
from smallbatch.analysis.stats import intervals
from smallbatch.analysis.stats.intervals import Interval, Noise


@dataclass(frozen=True)
class Choice:
    """The selected cell of a grid and its loss."""

    index: int  # index of the selected configuration in the grid
    loss_nats: float  # mean over the reporting seeds
    interval: Interval | None
    seeds: int  # number of reporting seeds
    held_out: bool  # whether no reporting seed was used for the selection
    lowest_mean_nats: float  # lowest mean of all cells, over all seeds
    lowest_mean_interval: Interval | None
    noise: Noise


@functools.lru_cache(maxsize=100_000)
def choose(group: Group) -> Choice | None:
    """Select the point with the lowest mean and report its loss on held-out seeds; None if no mean is finite.

    A seed is used for the selection if it was run at half as many points as the most common seed, or more. If a grid
    was run with seed 0 and its best cell also with seeds 1 and 2, seed 0 selects, and seeds 1 and 2 report. If all
    points have all seeds, the first half of the seeds (rounded up) selects and the rest report. A single seed does
    both, and its loss is optimistically biased. A point that diverged with any seed is selected only if all points did.
    Source: Cawley and Talbot 2010, "On over-fitting in model selection", JMLR 11, section 4.
    """
    if not np.isfinite(group.mean_P).any():
        return None
    loss = np.where(np.isinf(group.mean_P)[:, None] & ~np.isnan(group.loss_PxS), np.inf, group.loss_PxS)
    choosing, index = _selection(loss)
    known = ~np.isnan(loss[index])
    if (known & ~choosing).any():
        reporting = known & ~choosing
    elif (known & choosing).sum() > 1:
        first = np.flatnonzero(choosing)[: (choosing.sum() + 1) // 2]
        choosing = np.isin(np.arange(loss.shape[1]), first)
        index = _lowest(loss[:, choosing])
        reporting = ~np.isnan(loss[index]) & ~choosing
        if not reporting.any():
            reporting = ~np.isnan(loss[index])
    else:
        reporting = known
    noise = intervals.pooled_noise(loss)
    mean, seeds = float(loss[index][reporting].mean()), int(reporting.sum())
    lowest = float(np.nanmin(group.mean_P))
    return Choice(
        index=index,
        loss_nats=mean,
        interval=intervals.student(mean, seeds, noise),
        seeds=seeds,
        held_out=not (reporting & choosing).any(),
        lowest_mean_nats=lowest,
        lowest_mean_interval=_lowest_mean_interval(group, noise),
        noise=noise,
    )


def _selection(loss_PxS: np.ndarray) -> tuple[np.ndarray, int]:
    """Return which seeds select, [S], and the point that they select."""
    points_S = (~np.isnan(loss_PxS)).sum(0)
    choosing = points_S >= points_S.max() / 2
    if not np.isfinite(mean_over_seeds(loss_PxS[:, choosing])).any():
        choosing = np.ones_like(choosing)
    return choosing, _lowest(loss_PxS[:, choosing])


def _lowest(loss_PxS: np.ndarray) -> int:
    means = mean_over_seeds(loss_PxS)
    return int(np.argmin(np.where(np.isnan(means), np.inf, means)))


def _lowest_mean_interval(group: Group, noise: Noise) -> Interval | None:
    if noise.df == 0:
        return None
    finite = np.isfinite(group.mean_P)
    means, seeds = group.mean_P[finite], (~np.isnan(group.loss_PxS[finite])).sum(1)
    draws = intervals.draw_means(means, seeds, noise)
    return intervals.both_ways(float(means.min()), draws.min(1))


def equal_flops(table: RunTable) -> list[Row]:
    """Return a row for each setting, arm and batch size: the best run, the lowest mean, the selected cell."""
    rows: list[Row] = []
    for group in table.groups:
        runs, choice = group.all_runs(), choose(group)
        statuses = Counter(run.status for run in runs)
        flops = [run.flops for run in runs if run.status == "done"]
        row: Row = {
            "setting": group.setting,
            "arm": group.arm,
            "batch_size": group.batch_size,
            "best_run_loss_nats": _least([run.final_loss_nats for run in runs]),
            "lowest_mean_loss_nats": choice.lowest_mean_nats if choice else None,
            **bounds("lowest_mean_loss_nats", choice.lowest_mean_interval if choice else None),
            "chosen_loss_nats": choice.loss_nats if choice else None,
            **bounds("chosen_loss_nats", choice.interval if choice else None),
            "reporting_seeds": choice.seeds if choice else 0,
            "held_out": choice.held_out if choice else None,
            "chosen": point_text(group.points[choice.index]) if choice else None,
            "noise_over_seeds_nats": choice.noise.sd if choice and choice.noise.df else None,
            "points": len(group.points),
            "trials": sum(not np.isnan(run.final_loss_nats) for run in runs),
            "diverged": statuses["diverged"],
            "cut": statuses["cut"],
            "missing": statuses["missing"] + statuses["failed"],
            "flops": float(np.median(flops)) if flops else None,
        }
        rows.append(row)
    return rows


def bounds(column: str, interval: Interval | None) -> Row:
    """Return the two columns of an interval."""
    low, high = (float(interval[0]), float(interval[1])) if interval else (None, None)
    return {f"{column}_low": low, f"{column}_high": high}


def _least(losses: list[float]) -> float | None:
    known = [loss for loss in losses if not np.isnan(loss)]
    return min(known, default=None)
