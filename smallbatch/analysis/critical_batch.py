"""Estimate the critical batch size: the largest batch size with almost perfect scaling of steps.

Its value depends on the definition, which is therefore always printed with it. Here it is the largest batch size B
whose steps to a target loss are at most (1 + h) times those of perfect scaling from a reference batch size B_ref,
(1 + h) S(B_ref) B_ref / B, where h is the overhead. With S(B) = a + b/B this is B* = (1 + h) B_ref + h b/a.

If the interval of b/a has no upper end, the data are consistent with perfect scaling and give only a lower bound. If it
begins at 0, they give only an upper bound: an estimate would be (1 + h) B_ref, which does not depend on the data. No
estimate is reported in these two cases.
Source: Zhang et al. 2024 (arXiv 2410.21676), section 2, there h = 0.2 and B_ref = 256.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from smallbatch.analysis import cost, gradients
from smallbatch.analysis.budgets import curve_kind, curve_of
from smallbatch.analysis.read.run_table import Group, Run, RunTable
from smallbatch.analysis.report import drawing
from smallbatch.analysis.report.options import DEFAULTS, Options
from smallbatch.analysis.report.section import Analysis, Figure, Finding, Section, Table
from smallbatch.analysis.report.tables import (
    Row,
    batch_text,
    column,
    finite_number,
    interval_text,
    listed,
    size_text,
    split,
)
from smallbatch.analysis.stats import batch_law, power_law
from smallbatch.analysis.stats.batch_law import BatchLaw
from smallbatch.analysis.stats.equal_flops import bounds
from smallbatch.analysis.stats.intervals import Interval

TARGET_FRAC = 0.75  # of the batch sizes reach the default target


@dataclass(frozen=True, eq=False)
class Critical:
    """Steps to a target loss at each batch size, the fitted law, and the critical batch size."""

    setting: str
    arm: str
    target_nats: float
    kind: str  # of the loss: validation | training | end
    overhead_frac: float
    reference_batch_size: float
    batch_sizes: np.ndarray  # one value per run
    steps: np.ndarray  # one value per run
    not_reached: tuple[float, ...]  # batch sizes that do not reach the target
    before_first_record: tuple[float, ...]  # batch sizes that reach it before their first record, at an unknown step
    law: BatchLaw | None  # None with fewer than three batch sizes
    params: float
    tokens: float

    @property
    def definition(self) -> str:
        kind = "" if self.kind == "end" else f"{self.kind} "
        return (
            f"largest batch size whose steps to a {kind}loss of {self.target_nats:g} nats are at most "
            f"{1 + self.overhead_frac:g}x perfect scaling from batch size {batch_text(self.reference_batch_size)}"
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


def measure(groups: list[Group], kind: str, options: Options) -> Critical | None:
    """Measure one method in one setting; None if no batch size reaches the target, or steps are unknown.

    The steps of a batch size are those of its fastest config, one value per seed. The default target is the lowest loss
    that three quarters of the batch sizes, and at least three, reach. The default reference batch size is the smallest.
    """
    target = options.target_loss_nats
    if target is None:
        target = cost.common_target(groups, kind, max(TARGET_FRAC, min(1.0, 3 / len(groups))))
    if target is None:
        return None
    sizes: list[float] = []
    steps: list[float] = []
    missed, early = [], []
    for group in groups:
        costs = cost.costs_of_points(group, kind, "steps", target)
        _, index = cost.cheapest(costs)
        if index is None:
            missed.append(group.batch_size)
        elif kind != "end" and any(_starts_below(run, kind, target) for run in group.runs[index] if run):
            early.append(group.batch_size)
        else:
            found = costs[index][~np.isnan(costs[index])]
            sizes += [group.batch_size] * len(found)
            steps += [float(count) for count in found]
    if not sizes:
        return None
    reference = options.reference_batch_size
    runs = [run for group in groups for run in group.all_runs()]
    return Critical(
        setting=groups[0].setting,
        arm=groups[0].arm,
        target_nats=target,
        kind=kind,
        overhead_frac=options.overhead_frac,
        reference_batch_size=min(sizes) if reference is None else reference,
        batch_sizes=np.array(sizes),
        steps=np.array(steps),
        not_reached=tuple(missed),
        before_first_record=tuple(early),
        law=batch_law.fit(np.array(sizes), np.array(steps)) if len(set(sizes)) >= 3 else None,
        params=_median([run.params for run in runs]),
        tokens=_median([run.tokens for run in runs]),
    )


def _starts_below(run: Run, kind: str, target_nats: float) -> bool:
    curve = curve_of(run, kind)
    return curve is not None and bool(curve.loss_nats[0] <= target_nats)


def _median(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else np.nan


def critical_batches(runs: RunTable, options: Options = DEFAULTS) -> list[Critical]:
    """Measure every method in every setting, and return those with a result."""
    kind = curve_kind(runs)
    return [critical for groups in runs.series().values() if (critical := measure(groups, kind, options))]


def steps_rows(measured: list[Critical]) -> list[Row]:
    """Return one row per run with its steps to the target."""
    return [
        {
            "setting": critical.setting,
            "arm": critical.arm,
            "batch_size": float(size),
            "target_loss_nats": critical.target_nats,
            "steps": float(steps),
            "steps_fitted": float(critical.law(size)) if critical.law else None,
        }
        for critical in measured
        for size, steps in zip(critical.batch_sizes, critical.steps, strict=True)
    ]


def critical_rows(measured: list[Critical], gradient_rows: Sequence[Row] = ()) -> list[Row]:
    """Return the critical batch size of each method, its definition, and the gradient noise scale if recorded."""
    scales = split((row for row in gradient_rows if row["noise_scale_seqs"] is not None), "setting", "arm")
    rows: list[Row] = []
    for critical in measured:
        if critical.law is None:
            continue
        scale = scales.get((critical.setting, critical.arm))
        rows.append(
            {
                "setting": critical.setting,
                "arm": critical.arm,
                "critical_batch_size": critical.batch_size,
                **bounds("critical_batch_size", critical.interval),
                "a_steps": critical.law.a,
                "b_steps_x_seqs": critical.law.b,
                "b_over_a_seqs": critical.law.ratio if critical.batch_size else None,
                "beyond_measured": bool((critical.batch_size or 0) > critical.batch_sizes.max()),
                "target_loss_nats": critical.target_nats,
                "overhead_frac": critical.overhead_frac,
                "reference_batch_size": critical.reference_batch_size,
                "batch_sizes": len(set(critical.batch_sizes)),
                "not_reached_by": " ".join(map(batch_text, critical.not_reached)),
                "before_first_record": " ".join(map(batch_text, critical.before_first_record)),
                "params": critical.params,
                "tokens": critical.tokens,
                "median_noise_scale_seqs": float(np.median(column(scale, "noise_scale_seqs"))) if scale else None,
                "definition": critical.definition,
            }
        )
    return rows


def estimate_text(row: Row) -> str:
    """Return the critical batch size of a row as text: an estimate with its interval, a bound, or unknown."""
    low, high = row["critical_batch_size_low"], row["critical_batch_size_high"]
    if row["critical_batch_size"] is not None:
        return f"{size_text(row['critical_batch_size'])} ({size_text(low)} to {size_text(high)}) sequences"
    if low:
        return f"at least {size_text(low)} sequences (the data give no upper bound)"
    if finite_number(high):
        return f"at most {size_text(high)} sequences (the data give no lower bound)"
    return "unknown: the data give no bound; measure more batch sizes"


def scaling_laws(rows: Sequence[Row]) -> list[Row]:
    """Fit critical batch size ~ N^p and ~ D^q for each method with estimates at three or more values of N or D.

    N is the number of parameters, D the number of training tokens. `rows` are those of `critical_rows`.
    """
    laws: list[Row] = []
    for (method,), own in split((row for row in rows if row["critical_batch_size"] is not None), "arm").items():
        for name in ("params", "tokens"):
            known = [row for row in own if np.isfinite(row[name])]
            x = column(known, name)
            if len(np.unique(x)) < 3:
                continue
            low, high = column(known, "critical_batch_size_low"), column(known, "critical_batch_size_high")
            law = power_law.fit(x, column(known, "critical_batch_size"), np.log(high / low) / 2)
            if law:
                laws.append(
                    {
                        "arm": method,
                        "against": name,
                        "exponent": law.exponent,
                        **bounds("exponent", law.interval),
                        "coefficient": law.coefficient,
                        "points": law.points,
                        "overhead_frac": known[0]["overhead_frac"],
                    }
                )
    return laws


def tables(runs: RunTable, options: Options) -> list[Table]:
    measured = critical_batches(runs, options)
    rows = critical_rows(measured, gradients.gradient_rows(runs))
    return [
        Table("critical_batch", "Critical batch size", rows),
        Table("critical_batch_laws", "Critical batch size against model and data", scaling_laws(rows)),
        Table("steps_to_target", "Steps to the target loss", steps_rows(measured)),
    ]


def figures(analysis: Analysis) -> Iterator[Figure]:
    steps = split(analysis.rows("steps_to_target"), "setting", "arm")
    for row in analysis.rows("critical_batch"):
        setting, method = row["setting"], row["arm"]
        own = steps[setting, method]
        sizes = column(own, "batch_size")
        x = np.geomspace(sizes.min(), sizes.max(), 60)
        axes = drawing.batch_axes(f"{method}: steps to {row['target_loss_nats']:g} nats", list(sizes))
        axes.plot(x, row["a_steps"] + row["b_steps_x_seqs"] / x, color=drawing.INK, label="a + b/B")
        reference = row["reference_batch_size"]
        style = {"color": drawing.INK, "linewidth": 0.9, "linestyle": (0, (2, 2)), "label": "perfect scaling"}
        axes.plot(x, (row["a_steps"] * reference + row["b_steps_x_seqs"]) / x, **style)
        for observed in own:
            size = observed["batch_size"]
            axes.plot(size, observed["steps"], "o", color=drawing.batch_colour(size))
        vertical = ""
        if (row["critical_batch_size"] or np.inf) <= 4 * sizes.max():
            axes.axvline(row["critical_batch_size"], color=drawing.INK, linewidth=0.9, alpha=0.6)
            vertical = " (vertical line)"
        drawing.count_axis(axes.yaxis)
        caption = (
            f"{method}: steps to the target against batch size{analysis.in_setting(setting)}. The critical batch size"
            f"{vertical} is {estimate_text(row)}: {row['definition']}."
        )
        yield Figure(f"critical-{setting}-{method}", axes, caption, "steps_to_target")
    for law_row in analysis.rows("critical_batch_laws"):
        yield _law_figure(law_row, [row for row in analysis.rows("critical_batch") if row["arm"] == law_row["arm"]])


def _law_figure(law: Row, rows: Sequence[Row]) -> Figure:
    name, method = law["against"], law["arm"]
    own = [row for row in rows if np.isfinite(row[name]) and row["critical_batch_size"] is not None]
    own.sort(key=lambda row: row[name])
    axes = drawing.new_axes({"params": "parameters", "tokens": "tokens"}[name], "critical batch size (sequences)")
    x, color = column(own, name), drawing.method_style(0)["color"]
    axes.vlines(x, column(own, "critical_batch_size_low"), column(own, "critical_batch_size_high"), color=drawing.INK)
    axes.plot(x, column(own, "critical_batch_size"), "o", color=color)
    axes.plot(x, law["coefficient"] * x ** law["exponent"], color=color)
    drawing.count_axis(axes.xaxis)
    drawing.count_axis(axes.yaxis)
    caption = f"{method}: critical batch size against {name}, exponent {law['exponent']:.3f}; bars: 90% intervals."
    return Figure(f"critical-law-{method}-{name}", axes, caption, "critical_batch")


def findings(analysis: Analysis) -> Iterator[Finding]:
    """Yield the critical batch sizes, with one topic per target loss, since others are not comparable."""
    for (setting,), rows in split(analysis.rows("critical_batch"), "setting").items():
        several = len({row["target_loss_nats"] for row in rows}) > 1
        for row in rows:
            topic = "Critical batch size" + (f", target {row['target_loss_nats']:g} nats" if several else "")
            text = f"{row['arm']}: the critical batch size is {estimate_text(row)}; definition: {row['definition']}"
            text += "; it is beyond the measured batch sizes" if row["beyond_measured"] else ""
            scale = row["median_noise_scale_seqs"]
            text += f". The gradient noise scale is {scale:.3g} sequences." if scale else "."
            yield Finding(topic, text, setting)
    for row in analysis.rows("critical_batch_laws"):
        text = (
            f"{row['arm']}: the critical batch size scales as {row['against']}^{row['exponent']:.3f}"
            f"{interval_text(row, 'exponent', '.3f')}, over {row['points']} settings."
        )
        yield Finding("Critical batch size at scale", text)


def warnings(analysis: Analysis) -> Iterator[str]:
    for (setting,), rows in split(analysis.rows("critical_batch"), "setting").items():
        if len({row["target_loss_nats"] for row in rows}) > 1:
            targets = listed([f"{row['arm']} {row['target_loss_nats']:g} nats" for row in rows])
            yield (
                f"The critical batch sizes{analysis.in_setting(setting, ' of {}')} have different target losses "
                f"({targets}) and cannot be compared. Set --target_loss_nats to use the same target for all of them."
            )


def empty(analysis: Analysis) -> str:
    one = "All runs have the same batch size; " if len(analysis.runs.batch_sizes) == 1 else ""
    return f"{one}a critical batch size needs three batch sizes that reach the same loss, with their steps."


SECTION = Section(
    name="critical",
    title="Critical batch size",
    description=(
        "Steps S(B) = a + b/B to a target loss, fitted in logarithms. If the data bound the critical batch size on one "
        "side only, or not at all, no estimate is given. Its value depends on the definition, which is given with each "
        "value (Zhang et al. 2024)."
    ),
    tables=tables,
    figures=figures,
    findings=findings,
    warnings=warnings,
    empty=empty,
)
