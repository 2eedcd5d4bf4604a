"""Robustness to hyperparameters: how much is lost when a tuned hyperparameter is off by a factor.

One idea: multiply one hyperparameter of the tuned point, keep the others, and look at the rise of the loss over the
multipliers (Marek et al. 2025, arXiv 2507.07101, figure 3). A diverged cell rises to +inf. Three numbers sum a profile
up: the width in log2 of the basin within delta of its minimum, the largest regret within [1/8, 8], and, over the whole
grid, the share of cells within delta.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from smallbatch.analysis.read.run_table import Group, RunTable
from smallbatch.analysis.report.tables import Row, key_text
from smallbatch.analysis.stats import intervals
from smallbatch.analysis.stats.equal_flops import bounds, choose
from smallbatch.analysis.stats.intervals import Interval

DELTA_NATS = 0.02
REGRET_LOG2 = 3.0  # multipliers from 1/8 to 8
DECAYS = ("b1", "b2", "weight_average_b")


@dataclass(frozen=True, eq=False)
class Profile:
    """Mean losses along one hyperparameter, the others as tuned; values ascending, one NaN-free entry a cell."""

    hyperparameter: str
    values: np.ndarray
    log2_multipliers: np.ndarray
    mean_nats: np.ndarray
    seeds: np.ndarray
    missing: int  # cells of the slice without a result
    tuned: int  # index of the tuned point

    @property
    def rise_nats(self) -> np.ndarray:
        """Rise above the lowest loss of the profile."""
        return self.mean_nats - self.mean_nats.min()


def scale(hyperparameter: str, value: Any) -> float:
    """Return a hyperparameter on a scale that can be multiplied; NaN for what cannot, such as a word or zero.

    A decay per step is turned into its half-life in steps, ln(1/2) / ln(b): 0.99 and 0.999 are a factor of 10 apart.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return math.nan
    if key_text(hyperparameter) in DECAYS:
        return math.log(0.5) / math.log(value) if value < 1 else math.nan
    return float(value)


def scale_text(hyperparameter: str) -> str:
    """Name the scale of a hyperparameter: a decay is multiplied by way of its half-life."""
    name = key_text(hyperparameter)
    return f"half-life of {name}" if name in DECAYS else name


def hyperparameters(group: Group) -> list[str]:
    """Return the hyperparameters with two or more values on a scale in this group, in the order of their names."""
    names = sorted({name for point in group.points for name, _ in point})
    scales = {name: {s for value in group.values(name) if not math.isnan(s := scale(name, value))} for name in names}
    return [name for name in names if len(scales[name]) > 1]


def profile(group: Group, hyperparameter: str) -> Profile | None:
    """Return the slice of the grid through the tuned point; None where fewer than two cells of it have a result."""
    choice = choose(group)
    if choice is None or math.isnan(at := scale(hyperparameter, dict(group.points[choice.index]).get(hyperparameter))):
        return None
    others = lambda point: tuple(item for item in point if item[0] != hyperparameter)
    tuned_others = others(group.points[choice.index])
    cells = [
        (s, p)
        for p, point in enumerate(group.points)
        if others(point) == tuned_others and not math.isnan(s := scale(hyperparameter, dict(point).get(hyperparameter)))
    ]
    known = sorted((s, p) for s, p in cells if not np.isnan(group.mean_P[p]))
    if len(known) < 2:
        return None
    values = np.array([s for s, _ in known])
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


def width_log2(log2_x: np.ndarray, mean_nats: np.ndarray, delta_nats: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the width of the basin around the minimum in log2, and whether it goes on beyond the grid.

    The basin is the connected set of multipliers with loss <= minimum + delta, between cells interpolated linearly in
    log2; towards a diverged cell it ends at the last one that did not. `mean_nats` may hold many tables, [..., cells];
    so do the results.
    """
    tables = np.atleast_2d(mean_nats)
    level = tables.min(1) + delta_nats
    lowest = tables.argmin(1)
    rows, last = np.arange(len(tables)), len(log2_x) - 1
    edges, beyond = [], np.zeros(len(tables), bool)
    for direction in (-1, 1):
        edge, inside, going = log2_x[lowest].astype(float), lowest.copy(), np.ones(len(tables), bool)
        for _ in range(last):
            there = inside + direction
            going &= (there >= 0) & (there <= last)
            there = np.clip(there, 0, last)
            here_loss, there_loss = tables[rows, inside], tables[rows, there]
            within = there_loss <= level
            rise = np.where(np.isfinite(there_loss) & (there_loss > here_loss), there_loss - here_loss, np.inf)
            share = np.where(within, 1.0, (level - here_loss) / rise)
            edge = np.where(going, log2_x[inside] + share * (log2_x[there] - log2_x[inside]), edge)
            inside = np.where(going & within, there, inside)
            going &= within
        beyond |= inside == (0 if direction < 0 else last)
        edges.append(edge)
    width = edges[1] - edges[0]
    shape = np.shape(mean_nats)[:-1]
    return width.reshape(shape), beyond.reshape(shape)


def cell_spans_log2(log2_x: np.ndarray, tables: np.ndarray, delta_nats: float) -> tuple[np.ndarray, np.ndarray]:
    """Return two spans of each table, [..., cells]: of the cells inside the basin, and of the cells next to them.

    The width of any basin with a single minimum is between the two. The outer span is infinite if the basin reaches an
    edge of the grid.
    """
    within = tables <= tables.min(-1, keepdims=True) + delta_nats
    index, last = np.arange(len(log2_x)), len(log2_x) - 1
    lowest = tables.argmin(-1)[..., None]
    left = np.where(~within & (index < lowest), index, -1).max(-1)
    right = np.where(~within & (index > lowest), index, last + 1).min(-1)
    outer = log2_x[np.minimum(right, last)] - log2_x[np.maximum(left, 0)]
    return log2_x[right - 1] - log2_x[left + 1], np.where((left < 0) | (right > last), np.inf, outer)


def no_width_because(found: Profile, delta_nats: float) -> str | None:
    """Return the reason why a profile has no width; None if it has one.

    A column of multipliers is relative to the tuned point, multiplier 1; without a result there, the lowest loss is
    unknown. Two cells do not determine a basin, since one of them is always the lowest. A basin around a single cell
    may have any width below the distance between its neighbours: a parabola and a cusp through the same three cells
    differ by a factor of 2.
    """
    if key_text(found.hyperparameter).lower().endswith("multiplier") and not np.isclose(found.values, 1.0).any():
        return "no run at the tuned point (multiplier 1) has a result"
    if len(found.values) < 3:
        return "only two of its values have a result"
    inner, outer = cell_spans_log2(found.log2_multipliers, found.mean_nats, delta_nats)
    if inner > 0:
        return None
    less = f"it is less than {outer:.1f} doublings, and " if np.isfinite(outer) else ""
    return f"{less}only one value of its grid is in that range"


def largest_regret(found: Profile) -> float:
    """Return the largest rise in loss among the multipliers within [1/8, 8]; +inf if one of them diverged."""
    return float(found.rise_nats[np.abs(found.log2_multipliers) <= REGRET_LOG2 + 1e-6].max())


def width_interval(group: Group, found: Profile, delta_nats: float) -> Interval | None:
    """Return the interval of a width, from `cell_spans_log2` of simulated tables.

    It is valid for any shape of the basin between the cells; the width itself is interpolated linearly. Its upper end
    is infinite if the basin may extend beyond the grid. tests/test_coverage.py tests its coverage.
    """
    noise = choose(group).noise  # type: ignore[union-attr]  # a profile has a tuned point
    if noise.df == 0:
        return None
    draws = intervals.draw_means(found.mean_nats, found.seeds, noise)
    inner, outer = cell_spans_log2(found.log2_multipliers, found.mean_nats, delta_nats)
    inner_draws, outer_draws = cell_spans_log2(found.log2_multipliers, draws, delta_nats)
    low = intervals.both_ways(float(inner), inner_draws)
    high = intervals.both_ways(float(outer), outer_draws) if np.isfinite(outer) else (0.0, math.inf)
    return (max(0.0, low[0]), high[1]) if low and high else None


def profiles(table: RunTable) -> list[Row]:
    """Return the rise of the loss over the multipliers of each hyperparameter: figure 3 of the paper, as rows."""
    rows: list[Row] = []
    for group in table.groups:
        for name in hyperparameters(group):
            if (found := profile(group, name)) is None:
                continue
            rows += [
                {"setting": group.setting, "arm": group.arm, "batch_size": group.batch_size, "hyperparameter": name,
                 "value": float(value), "multiplier": float(2.0**log2), "loss_nats": float(mean),
                 "rise_nats": float(rise), "seeds": int(seeds)}
                for value, log2, mean, rise, seeds in zip(
                    found.values, found.log2_multipliers, found.mean_nats, found.rise_nats, found.seeds, strict=True)
            ]  # fmt: skip
    return rows


def robustness(table: RunTable, delta_nats: float = DELTA_NATS) -> list[Row]:
    """Return width, largest regret and edges of each hyperparameter at each batch size."""
    rows: list[Row] = []
    for group in table.groups:
        for name in hyperparameters(group):
            if (found := profile(group, name)) is None:
                continue
            reason = no_width_because(found, delta_nats)
            width, beyond = width_log2(found.log2_multipliers, found.mean_nats, delta_nats)
            reached = np.clip(found.log2_multipliers[[0, -1]], -REGRET_LOG2, REGRET_LOG2)
            edge = {0: "lowest", len(found.values) - 1: "highest"}.get(found.tuned)
            rows.append(
                {"setting": group.setting, "arm": group.arm, "batch_size": group.batch_size, "hyperparameter": name,
                 "tuned_value": float(found.values[found.tuned]), "width_log2": None if reason else float(width),
                 **bounds("width_log2", None if reason else width_interval(group, found, delta_nats)),
                 "wider_than_grid": bool(beyond) and not reason, "no_width_because": reason,
                 "largest_regret_nats": largest_regret(found), "regret_from_multiplier": float(2.0 ** reached[0]),
                 "regret_to_multiplier": float(2.0 ** reached[1]), "cells": len(found.values),
                 "missing": found.missing, "edge_of_grid": edge}
            )  # fmt: skip
    return rows
