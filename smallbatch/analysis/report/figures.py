"""The figures that answer the first questions: loss against batch size, gaps, curves, cost, learning rates, speed.

One idea: a figure is drawn from the rows of a sheet, comes with the sentence that says what it shows, and is left out
where it would be empty. A panel is one small SVG; the page lays panels side by side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from smallbatch.analysis import gaps
from smallbatch.analysis.report import drawing
from smallbatch.analysis.report.study import Study
from smallbatch.analysis.report.tables import Row, batch_text, split

FIRST_POINTS = 3  # a line needs that many places along a budget
NAME_BYTES = 180  # of a figure's file name; file systems allow 255, including suffix and prefix
NAMED = 4  # grids that a sentence names, one by one
INK = "#000000"


@dataclass(frozen=True)
class Picture:
    """One panel: its SVG, the sentence that says what it shows, and the sheet that its data are in."""

    name: str
    svg: str
    says: str
    sheet: str


def picture(axes: Axes, name: str, says: str, sheet: str) -> Picture:
    """Return the panel of axes on which all is drawn but the legend."""
    drawing.legend(axes)
    safe = "".join(c if c.isalnum() else "-" for c in name).encode()[:NAME_BYTES].decode(errors="ignore")
    return Picture(safe, drawing.to_svg(axes, safe, says), says, sheet)


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    return np.array([np.nan if row[name] is None else row[name] for row in rows], float)


def of_setting(study: Study, setting: str) -> str:
    """Name the setting in a sentence where there are several."""
    return f" ({setting})" if len(study.table.settings) > 1 else ""


def batch_axes(title: str, rows: Sequence[Row]) -> Axes:
    """Return new axes over the batch sizes of the rows."""
    axes = drawing.new_axes("batch size (sequences)", title)
    drawing.batch_axis(axes, [row["batch_size"] for row in rows])
    return axes


def by_arm(study: Study, rows: Sequence[Row]) -> Iterator[tuple[list[Row], dict]]:
    """Yield the rows of each arm, and how its line looks: its name in the legend, colour, marker and dashes."""
    for (arm,), own in split(rows, "arm").items():
        label = drawing.label_text(arm, drawing.LABEL_CHARACTERS)
        yield own, {"label": label, **drawing.arm_style(study.table.arms.index(arm))}


def with_intervals(axes: Axes, rows: Sequence[Row], y: str, **style) -> None:
    """Draw a line with markers over batch sizes, and bars where the rows have intervals."""
    x, value = column(rows, "batch_size"), column(rows, y)
    known = np.isfinite(value)
    low, high = column(rows, f"{y}_low"), column(rows, f"{y}_high")
    axes.plot(x[known], value[known], **style)
    bars = known & np.isfinite(low) & np.isfinite(high)
    axes.vlines(x[bars], low[bars], high[bars], color=style["color"], linewidth=1.0, alpha=0.8)


def loss_against_batch(study: Study) -> list[Picture]:
    pictures = []
    finite = [row for row in study.rows("equal_flops") if np.isfinite(row["chosen_loss_nats"] or np.inf)]
    losses = column(finite, "chosen_loss_nats")
    for (setting,), rows in split(finite, "setting").items():
        axes = batch_axes("loss (nats/token)", rows)
        for own, style in by_arm(study, rows):
            with_intervals(axes, own, "chosen_loss_nats", **style)
        if len(study.table.settings) > 1:  # side by side, on one scale
            axes.set_ylim(losses.min() - 0.05 * np.ptp(losses) - 0.01, losses.max() + 0.05 * np.ptp(losses) + 0.01)
        where = of_setting(study, setting)
        says = f"Loss of the chosen cell at equal FLOPs against batch size{where}; bars: 90% intervals."
        pictures.append(picture(axes, f"loss-{setting}", says, "equal_flops"))
    return pictures


def gaps_against_batch(study: Study) -> list[Picture]:
    """Every arm minus the reference arm."""
    pictures = []
    reference = gaps.reference_arm(study.table)
    for (setting,), rows in split(study.rows("gaps"), "setting").items():
        against = [row for arm in study.table.arms for row in gaps.between(rows, arm, str(reference))
                   if np.isfinite(row["gap_nats"])]  # fmt: skip
        if not against:
            continue
        axes = batch_axes(f"loss minus that of {reference} (nats)", against)
        for own, style in by_arm(study, against):
            with_intervals(axes, own, "gap_nats", **style)
        axes.axhline(0, color=INK, linewidth=0.8)
        where = of_setting(study, setting)
        says = f"How much more loss than {reference} at the same batch size and FLOPs{where}; bars: 90% intervals."
        pictures.append(picture(axes, f"gap-{setting}", says, "gaps"))
    return pictures


AXIS_LABELS = {"flops": "training FLOPs", "steps": "optimizer steps", "secs": "seconds of training", "tokens": "tokens"}


def curves_along_budget(study: Study) -> list[Picture]:
    pictures = []
    for (setting, arm), rows in split(study.rows("loss_curves"), "setting", "arm").items():
        for name in ("flops", "steps", "secs"):
            axes = drawing.new_axes(AXIS_LABELS[name], f"{arm}: {rows[0]['loss']} loss (nats) by batch size")
            for (size,), own in split([row for row in rows if row["axis"] == name], "batch_size").items():
                if len(own) >= FIRST_POINTS:
                    x, y = column(own, "budget"), column(own, "loss_nats")
                    axes.plot(x, y, color=drawing.batch_colour(size), label=batch_text(size))
            if not axes.lines:
                continue
            drawing.count_axis(axes.xaxis)
            says = (f"{arm}: lowest loss over the grid against {AXIS_LABELS[name]}{of_setting(study, setting)}, "
                    "a line a batch size.")  # fmt: skip
            pictures.append(picture(axes, f"curve-{setting}-{arm}-{name}", says, "loss_curves"))
    return pictures


def cost_against_batch(study: Study) -> list[Picture]:
    pictures = []
    for (setting,), rows in split(study.rows("cost_to_target"), "setting").items():
        for name, unit in (("flops", "FLOPs"), ("secs", "seconds")):
            reached = [row for row in rows if np.isfinite(row[f"{name}_ratio"])]
            if len(reached) < 2:
                continue
            target = reached[0]["target_loss_nats"]
            axes = batch_axes(f"{unit} to {target:g} nats, x the least", rows)
            for own, style in by_arm(study, reached):
                axes.plot(column(own, "batch_size"), column(own, f"{name}_ratio"), **style)
            drawing.count_axis(axes.yaxis)
            never = [f"{row['arm']} at {batch_text(row['batch_size'])}" for row in rows if np.isinf(row[name])]
            listed = ", ".join(never) if len(never) <= NAMED else f"{len(never)} of {len(rows)} grids, see the data"
            says = (
                f"{unit[0].upper()}{unit[1:]} to reach {target:g} nats, as a multiple of the "
                f"least{of_setting(study, setting)}." + (f" Never there: {listed}." if never else "")
            )
            pictures.append(picture(axes, f"cost-{setting}-{name}", says, "cost_to_target"))
    return pictures


def learning_rate_against_batch(study: Study) -> list[Picture]:
    pictures = []
    laws = split(study.rows("learning_rate_laws"), "setting", "arm")
    for (setting,), rows in split(study.rows("learning_rates"), "setting").items():
        if len({row["batch_size"] for row in rows}) < 2:
            continue
        axes = batch_axes("best learning rate", rows)
        for own, style in by_arm(study, rows):
            name = "best_learning_rate" if any(r["best_learning_rate"] for r in own) else "tuned_learning_rate"
            inside = [
                row | {f"{name}_{end}": row[f"best_learning_rate_{end}"] or None for end in ("low", "high")}
                for row in own
                if row[name] and not row["edge_of_grid"]
            ]
            with_intervals(axes, inside, name, **style | {"linestyle": "none"})
            edges = [r for r in own if r["edge_of_grid"]]
            axes.plot(column(edges, "batch_size"), column(edges, "tuned_learning_rate"), linestyle="none", marker="_",
                      color=style["color"], markersize=9)  # fmt: skip
            if found := laws.get((setting, own[0]["arm"])):
                x = column(own, "batch_size")
                axes.plot(x, found[0]["coefficient"] * x ** found[0]["exponent"], color=style["color"], linewidth=0.9)
        drawing.count_axis(axes.yaxis)
        says = (f"Best learning rate against batch size{of_setting(study, setting)}; lines: fitted power laws; a dash: "
                "the best cell lies at the edge of its grid, and is not fitted.")  # fmt: skip
        pictures.append(picture(axes, f"learning-rate-{setting}", says, "learning_rates"))
    return pictures


def speed_and_memory(study: Study) -> list[Picture]:
    pictures = []
    wanted = (("tokens_per_sec", "tokens per second", 1.0), ("memory_bytes", "memory on a device (MiB)", 2.0**20))
    for (setting,), rows in split(study.rows("hardware"), "setting").items():
        for name, label, unit in wanted:
            known = [row for row in rows if np.isfinite(row[name])]
            if len({row["batch_size"] for row in known}) < 2:
                continue
            axes = batch_axes(label, known)
            for own, style in by_arm(study, known):
                axes.plot(column(own, "batch_size"), column(own, name) / unit, **style)
            axes.set_ylim(bottom=0)
            drawing.count_axis(axes.yaxis, log=False)
            where = of_setting(study, setting)
            says = f"{label[0].upper()}{label[1:]} against batch size{where}, medians over finished runs."
            pictures.append(picture(axes, f"{name}-{setting}", says, "hardware"))
    return pictures
