"""Report the loss of each method at each batch size, at equal FLOPs.

The table is computed in stats/equal_flops.py.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report import drawing
from smallbatch.analysis.report.options import Options
from smallbatch.analysis.report.section import Analysis, Figure, Finding, Section, Table
from smallbatch.analysis.report.tables import (
    Row,
    batch_text,
    column,
    counted,
    finite_number,
    interval_text,
    listed,
    split,
)
from smallbatch.analysis.stats.equal_flops import equal_flops

TOPIC = "Best batch size"


def tables(runs: RunTable, options: Options) -> list[Table]:
    return [Table("equal_flops", "Loss at equal FLOPs", equal_flops(runs))]


def _finite(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if finite_number(row["chosen_loss_nats"])]


def figures(analysis: Analysis) -> Iterator[Figure]:
    finite = _finite(analysis.rows("equal_flops"))
    losses = column(finite, "chosen_loss_nats")
    for (setting,), rows in split(finite, "setting").items():
        axes = drawing.against_batch_size("loss (nats/token)", rows, "chosen_loss_nats", analysis.runs.arms)
        if len(analysis.runs.settings) > 1:  # the same scale for all settings
            margin = 0.05 * np.ptp(losses) + 0.01
            axes.set_ylim(losses.min() - margin, losses.max() + margin)
        where = analysis.in_setting(setting)
        caption = f"Loss of the selected config at equal FLOPs against batch size{where}; bars: 90% intervals."
        yield Figure(f"loss-{setting}", axes, caption, "equal_flops")


def findings(analysis: Analysis) -> Iterator[Finding]:
    for (setting,), rows in split(analysis.rows("equal_flops"), "setting").items():
        finite = _finite(rows)
        losses = {row["chosen_loss_nats"] for row in finite}
        if not finite:
            yield Finding(TOPIC, "No run has a finite loss, so batch sizes cannot be compared.", setting)
        elif len(losses) == 1 < len(finite):
            text = f"All batch sizes have the same loss, {losses.pop():g} nats; compare their costs instead."
            yield Finding(TOPIC, text, setting)
        else:
            yield Finding(TOPIC, _lowest_text(finite), setting)
            speeds = {
                (row["arm"], row["batch_size"]): row["tokens_per_sec"]
                for row in analysis.rows("hardware")
                if row["setting"] == setting
            }
            for own in split(finite, "arm").values():
                if len(own) > 1:
                    yield Finding(TOPIC, _batch_sizes_text(own, analysis.options.delta_nats, speeds), setting)


def _lowest_text(rows: Sequence[Row]) -> str:
    row = min(rows, key=lambda row: row["chosen_loss_nats"])
    config = f" ({row['chosen']})" if row["chosen"] else ""
    text = (
        f"The lowest loss is {row['chosen_loss_nats']:.3f}{interval_text(row, 'chosen_loss_nats', '.3f')} nats, with "
        f"{row['arm']} at batch size {batch_text(row['batch_size'])}{config}"
    )
    runs = counted(row["trials"], "run")
    if row["held_out"]:
        return f"{text}: best of {runs}, mean of {counted(row['reporting_seeds'], 'held-out seed')}."
    return f"{text}: best of {runs} without held-out seeds, so optimistic." if row["trials"] > 1 else f"{text}."


def _batch_sizes_text(rows: Sequence[Row], delta_nats: float, speeds: dict[tuple[str, float], float]) -> str:
    """Return which batch sizes of a method are as good as its best one, and which of these is the fastest."""

    def size(row: Row) -> str:
        return batch_text(row["batch_size"])

    def loss(row: Row) -> float:
        return row["chosen_loss_nats"]

    def speed(row: Row) -> float:
        return speeds.get((row["arm"], row["batch_size"]), np.nan)

    best, worst = min(rows, key=loss), max(rows, key=loss)
    good = [row for row in rows if loss(row) <= loss(best) + delta_nats]
    others = [size(row) for row in good if row is not best]
    text = f"{best['arm']}: batch size {size(best)} is best ({loss(best):.3f} nats); "
    text += (
        f"{listed(others) if others else 'no other'} {'is' if len(others) < 2 else 'are'} within {delta_nats:g} nats"
    )
    if worst not in good:
        text += f"; at {size(worst)} the loss is {loss(worst):.3f} nats"
    known = [row for row in good if np.isfinite(speed(row))]
    if len(known) > 1:
        fastest = max(known, key=speed)
        text += f"; batch size {size(fastest)} is the fastest of these on this hardware"
        ratio = speed(fastest) / speed(best)  # NaN if the speed of the best batch size is unknown
        text += f" ({ratio:.2g}x the tokens per second of the best)" if ratio > 1.005 else ""
    return f"{text}."


def warnings(analysis: Analysis) -> Iterator[str]:
    rows = analysis.rows("equal_flops")
    for row in rows:
        if row["chosen_loss_nats"] is not None and np.isinf(row["chosen_loss_nats"]):
            yield f"{analysis.grid_text(row)}: the selected config ({row['chosen']}) diverged with other seeds."
    finite = _finite(rows)
    if single := [row for row in finite if row["noise_over_seeds_nats"] is None]:
        yield (
            f"{len(single)} of {len(finite)} grids have only one seed per configuration: their losses, gaps, widths "
            "and best learning rates have no intervals, and differences may be due to chance. Intervals of fitted "
            "laws are computed from the scatter of the points."
        )
    if optimistic := [row for row in finite if not row["held_out"] and row["trials"] > 1]:
        yield (
            f"In {len(optimistic)} of {len(finite)} grids the same seed was used for tuning and reporting, so the "
            "loss is optimistically biased."
        )
    unequal = []
    for (setting, method), own in split(rows, "setting", "arm").items():
        trials = sorted({row["trials"] for row in own})
        if len(trials) > 1:
            unequal.append(f"{method} {trials[0]} to {trials[-1]}{analysis.in_setting(setting)}")
    if unequal:
        yield f"The number of runs differs between batch sizes ({listed(unequal)}); more runs find a lower minimum."
    for (setting,), own in split(rows, "setting").items():
        flops = [row["flops"] for row in own if finite_number(row["flops"])]
        if flops and max(flops) > 1.01 * min(flops):
            yield f"{setting}: runs used {min(flops):.3g} to {max(flops):.3g} FLOPs, so losses are not at equal FLOPs."


SECTION = Section(
    name="loss",
    title="Loss at equal FLOPs",
    description=(
        "Loss of the selected config of each grid, measured on held-out seeds where there are any. For comparison: the "
        "lowest mean over all seeds, and the best single run, which is what papers usually report."
    ),
    tables=tables,
    figures=figures,
    findings=findings,
    warnings=warnings,
    empty=lambda analysis: "No run has a finite loss.",
)
