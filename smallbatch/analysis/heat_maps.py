"""Draw the loss over two hyperparameters at once (Marek et al. 2025, arXiv 2507.07101, figure 1b).

The table is computed in stats/surfaces.py.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from smallbatch.analysis.read.naming import LEARNING_RATE
from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report import drawing
from smallbatch.analysis.report.options import Options
from smallbatch.analysis.report.section import Analysis, Figure, Section, Table
from smallbatch.analysis.report.tables import Row, batch_text, column, finite_number, key_text, split, value_text
from smallbatch.analysis.stats.surfaces import rank, surfaces

RANGE_NATS = 0.24  # colours extend this far above the lowest loss of the worst batch size, as in the paper
COLOUR_STEPS = 5  # in the legend
TICK_CHARACTERS = 16
MAX_LABELS = 8  # columns with losses as text, and ticks of x
DIVERGED, NOT_RUN = "#8c8c93", "none"


def tables(runs: RunTable, options: Options) -> list[Table]:
    return [Table("heat_maps", "Loss over two hyperparameters", surfaces(runs), in_summary=False)]


def figures(analysis: Analysis) -> Iterator[Figure]:
    """Yield one figure for each batch size and pair of hyperparameters; of many pairs, those with the learning rate."""
    panels = split(analysis.rows("heat_maps"), "setting", "arm", "x", "y")
    for (setting, method, x, y), rows in panels.items():
        pairs = [key[2:] for key in panels if key[:2] == (setting, method)]
        if LEARNING_RATE not in (x, y) and any(LEARNING_RATE in pair for pair in pairs):
            continue
        by_size = split((row for row in rows if finite_number(row["loss_nats"])), "batch_size")
        if not by_size:
            continue
        lowest = [column(own, "loss_nats").min() for own in by_size.values()]
        for (size,), own in split(rows, "batch_size").items():
            title = f"{method}, batch size {batch_text(size)}: loss (nats); y axis: {key_text(y)}"
            axes = _heat_map(title, x, y, own, min(lowest), max(lowest) + RANGE_NATS)
            caption = (
                f"{method} at batch size {batch_text(size)}: lowest loss for each {key_text(x)} and {key_text(y)}"
                f"{analysis.in_setting(setting)}. All batch sizes have the same colour scale. Grey: diverged; dash: "
                "not run."
            )
            yield Figure(f"heat-{setting}-{method}-{x}-{y}-{batch_text(size)}", axes, caption, "heat_maps")


def _heat_map(title: str, x: str, y: str, rows: Sequence[Row], lowest: float, highest: float) -> Axes:
    xs = sorted({row["x_value"] for row in rows}, key=rank)
    ys = sorted({row["y_value"] for row in rows}, key=rank)
    losses = {(row["x_value"], row["y_value"]): row["loss_nats"] for row in rows}
    colours = colormaps["viridis_r"]
    x_labels = [drawing.label_text(value_text(x, value), TICK_CHARACTERS) for value in xs]
    y_labels = [drawing.label_text(value_text(y, value), TICK_CHARACTERS) for value in ys]
    axes = drawing.new_axes(key_text(x), title, left_inches=0.25 + 0.085 * max(map(len, y_labels)))
    axes.grid(False)
    for (i, x_value), (j, y_value) in product(enumerate(xs), enumerate(ys)):
        loss = losses.get((x_value, y_value))
        level = 0.0 if loss is None else float(np.clip((loss - lowest) / (highest - lowest), 0, 1))
        if loss is None:
            face, text, ink = NOT_RUN, "-", drawing.INK
        elif np.isinf(loss):
            face, text, ink = DIVERGED, "div.", "#010101"
        else:
            face, text, ink = colours(level), f"{loss:.2f}", "#ffffff" if level > 0.45 else "#010101"
        axes.add_patch(Rectangle((i - 0.48, j - 0.47), 0.96, 0.94, facecolor=face, edgecolor="#0c0000", linewidth=0.6))
        if len(xs) <= MAX_LABELS:
            axes.text(i, j, text, ha="center", va="center", fontsize=9.0, color=ink)
    axes.set_xlim(-0.5, len(xs) - 0.5)
    axes.set_ylim(-0.5, len(ys) - 0.5)
    every = -(-len(xs) // MAX_LABELS)
    axes.set_xticks(range(0, len(xs), every), x_labels[::every])
    axes.set_yticks(range(len(ys)), y_labels)
    for level in np.linspace(0, 1, COLOUR_STEPS):
        label = f"{'≥ ' if level == 1 else ''}{lowest + level * (highest - lowest):.2f}"
        axes.add_patch(Rectangle((-2, -2), 1, 1, facecolor=colours(level), label=label))  # outside: for the legend
    return axes


SECTION = Section(
    name="heat_maps",
    title="Loss over two hyperparameters",
    description=(
        "Lowest loss for each pair of values, over all other hyperparameters. With three or more hyperparameters, only "
        "pairs with the learning rate are drawn; heat_maps.csv has all pairs."
    ),
    tables=tables,
    figures=figures,
    empty=lambda analysis: "A map needs two hyperparameters with two values or more at the same batch size.",
)
