"""Compute the gap between two methods at each batch size, such as SGD minus Adam.

A gap is the difference of two losses at the same batch size and the same FLOPs, with its own interval.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np

from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report import drawing
from smallbatch.analysis.report.options import Options
from smallbatch.analysis.report.section import Analysis, Figure, Finding, Section, Table
from smallbatch.analysis.report.tables import Row, batch_text, finite_number, interval, interval_text, listed, split
from smallbatch.analysis.stats import intervals
from smallbatch.analysis.stats.equal_flops import bounds, choose


def gaps(runs: RunTable) -> list[Row]:
    """Return the loss of one method minus that of another, for all pairs of methods that share a batch size.

    The interval is Welch's, for two independent means. Runs with the same seed share noise, so the interval is
    conservative.
    """
    rows: list[Row] = []
    for setting in runs.settings:
        groups = [group for group in runs.groups if group.setting == setting]
        selected = {(group.arm, group.batch_size): choice for group in groups if (choice := choose(group))}
        methods = [method for method in runs.arms if any(method == key[0] for key in selected)]
        for other, method in combinations(methods, 2):
            for size in sorted({size for _, size in selected}):
                a, b = selected.get((method, size)), selected.get((other, size))
                if a is None or b is None:
                    continue
                gap = a.loss_nats - b.loss_nats
                rows.append(
                    {
                        "setting": setting,
                        "arm": method,
                        "minus_arm": other,
                        "batch_size": size,
                        "gap_nats": gap,
                        **bounds("gap_nats", intervals.difference(gap, [(a.seeds, a.noise), (b.seeds, b.noise)])),
                        "arm_loss_nats": a.loss_nats,
                        "minus_arm_loss_nats": b.loss_nats,
                    }
                )
    return rows


def between(rows: Sequence[Row], method: str, other: str) -> list[Row]:
    """Return the finite gaps of `method` minus `other`; rows with `other` minus `method` are negated."""
    found = []
    for row in rows:
        if not finite_number(row["gap_nats"]):
            continue
        if (row["arm"], row["minus_arm"]) == (method, other):
            found.append(row)
        elif (row["arm"], row["minus_arm"]) == (other, method):
            low, high = interval(row, "gap_nats") or (None, None)
            negated = {"gap_nats": row["gap_nats"], "gap_nats_low": high, "gap_nats_high": low}
            negated = {name: None if value is None else -value for name, value in negated.items()}
            found.append({**row, "arm": method, "minus_arm": other, **negated})
    return found


def sign_changes(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return the pairs of neighbouring batch sizes between which the gap changes sign; gaps of zero are skipped."""
    signed = sorted((row for row in rows if row["gap_nats"]), key=lambda row: row["batch_size"])
    return [(a, b) for a, b in pairwise(signed) if (a["gap_nats"] > 0) != (b["gap_nats"] > 0)]


def reference_method(runs: RunTable) -> str | None:
    """Return the method that others are compared with: Adam if present, else the method with the lowest loss."""
    losses: dict[str, float] = {}
    for group in runs.groups:
        if choice := choose(group):
            losses[group.arm] = min(choice.loss_nats, losses.get(group.arm, float("inf")))
    adams = [method for method in losses if method.lower().startswith("adam")]
    return min(adams or losses, key=losses.__getitem__, default=None)


def _gaps_to_reference(analysis: Analysis, rows: Sequence[Row]) -> list[Row]:
    reference = str(reference_method(analysis.runs))
    return [row for method in analysis.runs.arms for row in between(rows, method, reference)]


def tables(runs: RunTable, options: Options) -> list[Table]:
    return [Table("gaps", "Gaps between methods", gaps(runs))]


def figures(analysis: Analysis) -> Iterator[Figure]:
    for (setting,), all_rows in split(analysis.rows("gaps"), "setting").items():
        if rows := _gaps_to_reference(analysis, all_rows):
            reference = rows[0]["minus_arm"]
            title = f"loss minus that of {reference} (nats)"
            axes = drawing.against_batch_size(title, rows, "gap_nats", analysis.runs.arms)
            axes.axhline(0, color=drawing.INK, linewidth=0.8)
            where = analysis.in_setting(setting)
            caption = f"Loss minus that of {reference} at the same batch size and FLOPs{where}; bars: 90% intervals."
            yield Figure(f"gap-{setting}", axes, caption, "gaps")


def findings(analysis: Analysis) -> Iterator[Finding]:
    for (setting,), rows in split(analysis.rows("gaps"), "setting").items():
        for own in split(_gaps_to_reference(analysis, rows), "arm").values():
            yield Finding("Gaps between methods", _gap_text(own), setting)


def _gap_text(rows: Sequence[Row]) -> str:
    """Return the largest gap between two methods, and either the smallest or all changes of sign."""

    def size(row: Row) -> str:
        return batch_text(row["batch_size"])

    def gap(row: Row) -> str:
        return f"{row['gap_nats'] + 0.0:+.3f}"  # + 0.0 avoids -0.000

    def with_interval(row: Row) -> str:
        return f"{gap(row)}{interval_text(row, 'gap_nats', '+.3f')} nats"

    ordered = sorted(rows, key=lambda row: abs(row["gap_nats"]))
    smallest, largest = ordered[0], ordered[-1]
    methods = f"{largest['arm']} minus {largest['minus_arm']}"
    if len(rows) == 1:
        return f"{methods}: {with_interval(largest)} at batch size {size(largest)}."
    if not largest["gap_nats"]:
        return f"{methods}: the gap is 0 nats at all {len(rows)} batch sizes."
    text = f"{methods}: the largest gap is {with_interval(largest)} at batch size {size(largest)}"
    changes = sign_changes(rows)
    if not changes:
        return (
            f"{text}, the smallest is {with_interval(smallest)} at {size(smallest)}; the sign is the same at all "
            f"{len(rows)} batch sizes."
        )
    pairs = [f"between {size(a)} ({gap(a)}) and {size(b)} ({gap(b)})" for a, b in changes]
    text += f"; the sign changes {', '.join(pairs)}"
    beside = {size(row): interval(row, "gap_nats") for pair in changes for row in pair}
    unclear = [name for name, found in beside.items() if found and found[0] <= 0 <= found[1]]
    return f"{text}; the 90% interval includes 0 at {listed(unclear)}." if unclear else f"{text}."


def warnings(analysis: Analysis) -> Iterator[str]:
    """Yield a warning if gaps between methods are below the standard error of the validation loss."""
    errors = [run.validation_loss_se_nats for run in analysis.runs.runs if np.isfinite(run.validation_loss_se_nats)]
    gaps = [abs(row["gap_nats"]) for row in analysis.rows("gaps") if finite_number(row["gap_nats"])]
    error = float(np.median(errors)) if errors else 0.0
    if smaller := sum(gap < error for gap in gaps):
        yield (
            f"The standard error of the validation loss, {error:.2g} nats, is larger than {smaller} of {len(gaps)} "
            "gaps between methods, so another validation set could reverse their signs. Use a larger validation set."
        )


def empty(analysis: Analysis) -> str:
    methods = analysis.runs.arms
    if len(methods) == 1:
        return f"A gap needs two methods with a finite loss at the same batch size; all runs belong to {methods[0]}."
    if len(analysis.runs.settings) > 1:
        return (
            "No two methods have a finite loss at the same batch size in the same setting. Runs of different sweeps, "
            "or with different models, data or budgets, belong to different settings."
        )
    return "No two methods have a finite loss at the same batch size."


SECTION = Section(
    name="gaps",
    title="Gaps between methods",
    description="Difference in loss between two methods at the same batch size.",
    tables=tables,
    figures=figures,
    findings=findings,
    warnings=warnings,
    empty=empty,
)
