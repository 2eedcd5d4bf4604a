"""The run table: every planned run with its outcome, and the grids that the runs form.

Setting, arm, batch size, hyperparameters and seed identify a run. Runs without a loss remain in the table: the loss of
a diverged run is +inf, that of a missing run is NaN.
"""

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from smallbatch.analysis.stats.curves import Curve

# done, diverged: have a result; cut: ended early because it was clearly worse; skipped: not run because a lower
# learning rate diverged; failed: crashed; missing: not run, or not finished.
STATUSES = ("done", "diverged", "cut", "skipped", "failed", "missing")
Point: TypeAlias = tuple[tuple[str, Any], ...]  # ((hyperparameter, value), ...), sorted by name


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """One run; NaN means unknown."""

    setting: str  # the sweep, and the model, data and budget if they differ within it
    arm: str  # the method, which has its own curve: an optimizer and how its decay rates are set
    batch_size: float  # sequences per optimizer update
    seed: int
    point: Point
    status: str
    loss_nats: float  # on the validation set at the end; +inf if diverged
    average_loss_nats: float = np.nan  # of the averaged weights
    validation_loss_se_nats: float = np.nan  # standard error of loss_nats over the validation set
    learning_rate: float = np.nan  # the peak
    tokens: float = np.nan
    flops: float = np.nan
    steps: float = np.nan
    secs: float = np.nan
    tokens_per_sec: float = np.nan
    peak_memory_bytes: float = np.nan  # from a CSV only; run directories have program_memory_bytes
    program_memory_bytes: float = np.nan  # of the compiled program, on one device
    params: float = np.nan
    context_tokens: float = np.nan
    source: str = ""  # run directory, or file and row
    failure_file: str = ""  # the file with the error of a failed run
    training: Curve | None = None
    validation: Curve | None = None
    gradients: dict[str, float] = field(default_factory=dict)  # see gradients.py

    @property
    def final_loss_nats(self) -> float:
        """The loss used to compare runs; +inf for cut and skipped runs, which count as diverged."""
        return np.inf if self.status in ("cut", "skipped") else self.loss_nats


@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one setting, arm and batch size, as a matrix of P points x S seeds."""

    setting: str
    arm: str
    batch_size: float
    points: tuple[Point, ...]
    seeds: tuple[int, ...]
    runs: tuple[tuple[Run | None, ...], ...]

    @functools.cached_property
    def loss_PxS(self) -> np.ndarray:
        """Final losses; NaN without a run, +inf for a diverged one."""
        return np.array([[np.nan if run is None else run.final_loss_nats for run in row] for row in self.runs], float)

    @functools.cached_property
    def mean_P(self) -> np.ndarray:
        """Mean of each point over its seeds; NaN without any."""
        return mean_over_seeds(self.loss_PxS)

    def values(self, hyperparameter: str) -> list[Any]:
        """Return the value of a hyperparameter at every point."""
        return [dict(point).get(hyperparameter) for point in self.points]

    def all_runs(self) -> list[Run]:
        return [run for row in self.runs for run in row if run is not None]


@dataclass(frozen=True, eq=False)
class RunTable:
    """All runs, notes about how they were read, and their provenance."""

    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()
    provenance: tuple[dict[str, Any], ...] = ()

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """Groups, ordered by setting and method as read, then by ascending batch size."""
        settings, arms = self.settings, self.arms
        runs: dict[tuple, list[Run]] = defaultdict(list)
        for run in self.runs:
            runs[settings.index(run.setting), arms.index(run.arm), run.batch_size].append(run)
        return tuple(_group(runs[key]) for key in sorted(runs))

    @functools.cached_property
    def settings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.setting for run in self.runs))

    @functools.cached_property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.arm for run in self.runs))

    @functools.cached_property
    def batch_sizes(self) -> tuple[float, ...]:
        return tuple(sorted({run.batch_size for run in self.runs}))

    def series(self) -> dict[tuple[str, str], list[Group]]:
        """Return the groups of each (setting, arm) by ascending batch size."""
        series: dict[tuple[str, str], list[Group]] = defaultdict(list)
        for group in self.groups:
            series[group.setting, group.arm].append(group)
        return dict(series)


def joined(tables: Sequence[RunTable]) -> RunTable:
    """Return one table with the runs of several."""
    return RunTable(
        tuple(run for table in tables for run in table.runs),
        tuple(note for table in tables for note in table.notes),
        tuple(source for table in tables for source in table.provenance),
    )


def mean_over_seeds(loss_PxS: np.ndarray) -> np.ndarray:
    """Return the mean of each row without its NaNs; +inf if a value is +inf, NaN if all are NaN."""
    known = ~np.isnan(loss_PxS)
    total = np.where(known, loss_PxS, 0.0).sum(1)
    return np.divide(total, known.sum(1), out=np.full(len(loss_PxS), np.nan), where=known.any(1))


def without_duplicates(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Return one run for each point and seed, and a note about the others.

    Of two runs with the same point and seed, the one with a loss is kept, or else the one that was read first. Counting
    both would underestimate the noise over seeds.
    """
    kept: dict[tuple, Run] = {}
    dropped = 0
    for run in runs:
        key = (run.setting, run.arm, run.batch_size, run.point, run.seed)
        dropped += key in kept
        if key not in kept or (np.isnan(kept[key].loss_nats) and not np.isnan(run.loss_nats)):
            kept[key] = run
    note = f"{dropped} run{'s' * (dropped != 1)} ignored: same point and seed as another run"
    return list(kept.values()), [note] if dropped else []


def _group(runs: list[Run]) -> Group:
    points = sorted({run.point for run in runs}, key=_sort_key)
    seeds = sorted({run.seed for run in runs})
    matrix: list[list[Run | None]] = [[None] * len(seeds) for _ in points]
    rows = {point: i for i, point in enumerate(points)}
    columns = {seed: i for i, seed in enumerate(seeds)}
    for run in runs:
        matrix[rows[run.point]][columns[run.seed]] = run
    first = runs[0]
    return Group(first.setting, first.arm, first.batch_size, tuple(points), tuple(seeds), tuple(map(tuple, matrix)))


def _sort_key(point: Point) -> list[tuple]:
    """Sort numbers by size, then text, then unset values."""
    return [
        (0, value, "") if isinstance(value, int | float) else (1 + (value is None), 0.0, str(value))
        for _, value in point
    ]
