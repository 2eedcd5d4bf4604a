"""Estimate the critical batch size: the largest batch size at which steps still fall nearly in proportion.

Its value depends on the definition, which is therefore always printed with it. Here it is the largest batch size B
whose steps to a target loss are at most (1 + h) times those of perfect scaling from a reference batch size B_ref,
(1 + h) S(B_ref) B_ref / B, where h is the overhead. With S(B) = a + b/B this is B* = (1 + h) B_ref + h b/a.

If the interval of b/a has no upper end, the data are consistent with perfect scaling and give only a lower bound. If it
begins at 0, they give only an upper bound: an estimate would be (1 + h) B_ref, which does not depend on the data. No
estimate is reported in these two cases.
Source: Zhang et al. 2024 (arXiv 2410.21676), section 2, there h = 0.2 and B_ref = 256.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from smallbatch.analysis import batch_law, budgets
from smallbatch.analysis.batch_law import BatchLaw
from smallbatch.analysis.read.run_table import Group, Run, RunTable
from smallbatch.analysis.report.tables import Row, batch_text, finite_number, size_text
from smallbatch.analysis.stats import power_law
from smallbatch.analysis.stats.equal_flops import bounds
from smallbatch.analysis.stats.intervals import Interval

OVERHEAD_FRAC = 0.2
TARGET_SHARE = 0.75  # of the batch sizes that reach the default target


@dataclass(frozen=True, eq=False)
class Critical:
    """Steps to a target at each batch size, a value a seed, the fitted law, and the critical batch size from it."""

    setting: str
    arm: str
    target_nats: float
    kind: str  # of the loss: validation | training | end
    overhead_frac: float
    reference_batch_size: float
    batch_sizes: np.ndarray  # one an observation
    steps: np.ndarray
    not_reached: tuple[float, ...]  # batch sizes
    at_once: tuple[float, ...]  # batch sizes that were there before their first record, so that it is not known when
    law: BatchLaw | None  # None with fewer than three batch sizes
    params: float
    tokens: float

    @property
    def definition(self) -> str:
        return (
            f"largest batch size whose steps to a {'' if self.kind == 'end' else self.kind + ' '}loss of "
            f"{self.target_nats:g} nats are at most {1 + self.overhead_frac:g} x perfect scaling from batch size "
            f"{batch_text(self.reference_batch_size)}"
        )

    @property
    def interval(self) -> Interval | None:
        """The interval of B*: from 0 if the data give no lower bound, to infinity if they give no upper bound."""
        if self.law is None or self.law.ratio_interval is None:
            return None
        low, high = self.law.ratio_interval
        return self._from_ratio(low) if low else 0.0, self._from_ratio(high)

    @property
    def batch_size(self) -> float | None:
        """The estimate B* = (1 + h) B_ref + h b/a; None unless the data bound it on both sides."""
        interval = self.interval
        if self.law is None or interval is None or not (interval[0] > 0 and np.isfinite(interval[1])):
            return None
        return self._from_ratio(self.law.ratio)

    def _from_ratio(self, ratio: float) -> float:
        return (1 + self.overhead_frac) * self.reference_batch_size + self.overhead_frac * ratio


def measure(
    groups: list[Group],
    kind: str,
    target_nats: float | None = None,
    overhead_frac: float = OVERHEAD_FRAC,
    reference_batch_size: float | None = None,
) -> Critical | None:
    """Measure one arm of one setting; None where no batch size reaches the target, or steps are not known.

    Steps of a batch size are those of the point of its grid that gets there first, a value for each of its seeds. The
    target, where none is given, is the lowest loss that three quarters of the batch sizes, and at least three, reach;
    the reference batch size is the smallest.
    """
    share = max(TARGET_SHARE, min(1.0, 3 / len(groups)))
    target = budgets.common_target(groups, kind, share) if target_nats is None else target_nats
    if target is None:
        return None
    sizes: list[float] = []
    steps: list[float] = []
    missed, early = [], []
    for group in groups:
        costs = budgets.costs_at_points(group, kind, "steps", target)
        _, index = budgets.cheapest(costs)
        if index is None:
            missed.append(group.batch_size)
        elif kind != "end" and any(_at_once(run, kind, target) for run in group.runs[index] if run):
            early.append(group.batch_size)
        else:
            found = costs[index][~np.isnan(costs[index])]
            sizes += [group.batch_size] * len(found)
            steps += [float(count) for count in found]
    if not sizes:
        return None
    reference = min(sizes) if reference_batch_size is None else reference_batch_size
    runs = [run for group in groups for run in group.all_runs()]
    enough = len(set(sizes)) >= 3
    law = batch_law.fit(np.array(sizes), np.array(steps))
    return Critical(
        setting=groups[0].setting,
        arm=groups[0].arm,
        target_nats=target,
        kind=kind,
        overhead_frac=overhead_frac,
        reference_batch_size=reference,
        batch_sizes=np.array(sizes),
        steps=np.array(steps),
        not_reached=tuple(missed),
        at_once=tuple(early),
        law=law if enough else None,
        params=_median([run.params for run in runs]),
        tokens=_median([run.tokens for run in runs]),
    )


def critical_batches(
    table: RunTable,
    target_nats: float | None = None,
    overhead_frac: float = OVERHEAD_FRAC,
    reference_batch_size: float | None = None,
) -> list[Critical]:
    """Measure every arm of every setting that can be."""
    kind = budgets.curve_kind(table)
    found = (
        measure(groups, kind, target_nats, overhead_frac, reference_batch_size) for groups in table.series().values()
    )
    return [critical for critical in found if critical]


def steps_rows(measured: list[Critical]) -> list[Row]:
    """Return steps to the target, a row an observation."""
    return [
        {"setting": c.setting, "arm": c.arm, "batch_size": float(size), "target_loss_nats": c.target_nats,
         "steps": float(steps), "steps_fitted": float(c.law(size)) if c.law else None}
        for c in measured
        for size, steps in zip(c.batch_sizes, c.steps, strict=True)
    ]  # fmt: skip


def critical_rows(measured: list[Critical], gradient_rows: list[Row]) -> list[Row]:
    """Return the critical batch size of each arm with its definition, and the gradient noise scale where recorded."""
    scales: dict[tuple, list[float]] = defaultdict(list)
    for row in gradient_rows:
        if row["noise_scale_seqs"] is not None:
            scales[row["setting"], row["arm"]].append(row["noise_scale_seqs"])
    rows: list[Row] = []
    for c in measured:
        if c.law is None:
            continue
        rows.append(
            {"setting": c.setting, "arm": c.arm, "critical_batch_size": c.batch_size,
             **bounds("critical_batch_size", c.interval), "a_steps": c.law.a, "b_steps_x_seqs": c.law.b,
             "b_over_a_seqs": c.law.ratio if c.batch_size else None,
             "beyond_measured": bool((c.batch_size or 0) > c.batch_sizes.max()),
             "target_loss_nats": c.target_nats, "overhead_frac": c.overhead_frac,
             "reference_batch_size": c.reference_batch_size, "batch_sizes": len(set(c.batch_sizes)),
             "not_reached_by": " ".join(map(batch_text, c.not_reached)),
             "before_first_record": " ".join(map(batch_text, c.at_once)), "params": c.params, "tokens": c.tokens,
             "median_noise_scale_seqs": float(np.median(s)) if (s := scales[c.setting, c.arm]) else None,
             "definition": c.definition}
        )  # fmt: skip
    return rows


def estimate_text(row: Row) -> str:
    """Return the critical batch size of a row in words: an estimate with its interval, a bound, or unknown."""
    low, high = row["critical_batch_size_low"], row["critical_batch_size_high"]
    if row["critical_batch_size"] is not None:
        return f"{size_text(row['critical_batch_size'])} ({size_text(low)} to {size_text(high)}) sequences"
    if low:
        return f"at least {size_text(low)} sequences, with no upper bound from these steps"
    if finite_number(high):
        return f"at most {size_text(high)} sequences, with no lower bound from these steps"
    return "unknown: these steps give neither a lower nor an upper bound; measure more batch sizes"


def scaling_laws(measured: list[Critical]) -> list[Row]:
    """Fit critical batch size ~ N^p and ~ D^q for each arm that has estimates at three or more values of N or D."""
    rows: list[Row] = []
    by_arm: dict[str, list[Critical]] = defaultdict(list)
    for c in measured:
        if c.batch_size is not None:
            by_arm[c.arm].append(c)
    for arm, found in by_arm.items():
        for name in ("params", "tokens"):
            known = [c for c in found if np.isfinite(getattr(c, name))]
            x = np.array([getattr(c, name) for c in known])
            if len(np.unique(x)) < 3:
                continue
            ends = np.array([c.interval for c in known], float)
            half_widths = np.diff(np.log(ends), axis=1)[:, 0] / 2
            law = power_law.fit(x, np.array([c.batch_size for c in known], float), half_widths)
            if law:
                rows.append(
                    {"arm": arm, "against": name, "exponent": law.exponent, **bounds("exponent", law.interval),
                     "coefficient": law.coefficient, "points": law.points, "overhead_frac": known[0].overhead_frac}
                )  # fmt: skip
    return rows


def _at_once(run: Run, kind: str, target_nats: float) -> bool:
    curve = budgets.curve_of(run, kind)
    return curve is not None and bool(curve.loss_nats[0] <= target_nats)


def _median(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else np.nan
