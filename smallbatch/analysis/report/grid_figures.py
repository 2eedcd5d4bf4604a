"""The figures about the grids themselves: robustness, random search, heat maps, and the laws over batch sizes.

One idea: as in figures.py; a line a batch size, in the batch size's colour.
"""

import math
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from smallbatch.analysis import critical_batch
from smallbatch.analysis.learning_rates import LEARNING_RATE
from smallbatch.analysis.report import drawing
from smallbatch.analysis.report.figures import INK, Picture, batch_axes, by_arm, column, of_setting, picture
from smallbatch.analysis.report.study import Study
from smallbatch.analysis.report.tables import Row, batch_text, finite_number, key_text, split, value_text
from smallbatch.analysis.robustness import scale_text
from smallbatch.analysis.stats.surfaces import rank

HIGHEST_RISE_NATS = 0.5  # as high as rises are drawn
HEAT_RANGE_NATS = 0.24  # above the lowest loss of the worst batch size; figure 1b of the paper has as much
HEAT_STEPS = 5
TICK_CHARACTERS = 16
DIVERGED, NOT_RUN = "#8c8c93", "none"


def robustness_profiles(study: Study) -> list[Picture]:
    """Rise of the loss over multipliers, figure 3 of the paper; what diverged is drawn at the top as a cross."""
    pictures = []
    by_panel = split(study.rows("robustness_profiles"), "setting", "arm", "hyperparameter")
    for (setting, arm, name), rows in by_panel.items():
        label = scale_text(name)
        finite = column(rows, "rise_nats")
        top = float(
            np.clip(1.15 * np.max(finite[np.isfinite(finite)]), 3 * study.questions.delta_nats, HIGHEST_RISE_NATS)
        )
        axes = drawing.new_axes(f"tuned {label} x", f"{arm}: rise in loss (nats) by batch size")
        for (size,), own in split(rows, "batch_size").items():
            x, rise = column(own, "multiplier"), column(own, "rise_nats")
            known = np.isfinite(rise)
            colour = drawing.batch_colour(size)
            axes.plot(x[known], rise[known], color=colour, marker="o", markersize=3.5, label=batch_text(size))
            axes.plot(x[~known], np.full((~known).sum(), 0.97 * top), "x", color=colour)
        axes.axhline(study.questions.delta_nats, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_xscale("log", base=2)
        span = np.log2(column(rows, "multiplier"))
        ticks = np.arange(np.floor(span.min()), np.ceil(span.max()) + 1)
        ticks = ticks[:: max(1, -(-len(ticks) // 9))]
        axes.set_xticks(2.0**ticks, [drawing.multiplier_text(t) for t in ticks])
        axes.set_ylim(-0.03 * top, top)
        crosses = " Cross: diverged." if np.isinf(finite).any() else ""
        says = (f"{arm}: rise of the loss when the tuned {label} is multiplied{of_setting(study, setting)}. Dashed: "
                f"the rise that still counts as good.{crosses}")  # fmt: skip
        pictures.append(picture(axes, f"rise-{setting}-{arm}-{name}", says, "robustness_profiles"))
    return pictures


def widths(study: Study) -> list[Picture]:
    pictures = []
    for (setting, name), rows in split(study.rows("robustness"), "setting", "hyperparameter").items():
        if len({row["batch_size"] for row in rows}) < 2:
            continue
        label = scale_text(name)
        axes = batch_axes(f"width in doublings of {label}", rows)
        for own, style in by_arm(study, rows):
            x, y = column(own, "batch_size"), column(own, "width_log2")
            axes.plot(x, y, **style)
            open_ended = np.array([row["wider_than_grid"] for row in own], bool)
            axes.plot(x[open_ended], y[open_ended] , linestyle="none", marker=(3, 0, 0), markersize=9, fillstyle="none",
                      color=style["color"])  # fmt: skip
        axes.set_ylim(bottom=0)
        says = (f"Width of the basin within {study.questions.delta_nats:g} nats of its lowest loss, in doublings of "
                f"{label}{of_setting(study, setting)}; a triangle: it goes on beyond the grid.")  # fmt: skip
        pictures.append(picture(axes, f"width-{setting}-{name}", says, "robustness"))
    return pictures


def random_search(study: Study) -> list[Picture]:
    pictures = []
    for (setting, arm), rows in split(study.rows("random_trials"), "setting", "arm").items():
        axes = drawing.new_axes("random trials of the grid", f"{arm}: expected best loss (nats) by batch size")
        for (size,), own in split(rows, "batch_size").items():
            x, y = column(own, "trials"), column(own, "expected_best_loss_nats")
            low, high = column(own, "best_loss_nats_low"), column(own, "best_loss_nats_high")
            known = np.isfinite(y)
            if known.sum() < 2:
                continue
            colour = drawing.batch_colour(size)
            axes.plot(x[known], y[known], color=colour, marker="o", markersize=3, label=batch_text(size))
            band = known & np.isfinite(high)
            axes.fill_between(x[band], low[band], high[band], color=colour, alpha=0.12, linewidth=0)
        if not axes.lines:
            continue
        drawing.count_axis(axes.xaxis, log=False, whole=True)
        says = (f"{arm}: expected best loss after n random cells of the grid{of_setting(study, setting)}; bands: where "
                "90% of searches end. A line begins where n trials cannot all diverge.")  # fmt: skip
        pictures.append(picture(axes, f"trials-{setting}-{arm}", says, "random_trials"))
    return pictures


def heat_maps(study: Study) -> list[Picture]:
    """Panels for every pair of hyperparameters of an arm; of three or more, for those with the learning rate."""
    pictures = []
    panels = split(study.rows("heat_maps"), "setting", "arm", "x", "y")
    for (setting, arm, x, y), rows in panels.items():
        own = [key for key in panels if key[:2] == (setting, arm)]
        if len(own) > 1 and LEARNING_RATE not in (x, y) and any(LEARNING_RATE in key for key in own):
            continue  # dozens of panels: the page says that the others are in the data
        losses = column(rows, "loss_nats")
        if not np.isfinite(losses).any():
            continue
        best = [
            min(found)
            for own in split(rows, "batch_size").values()
            if (found := [row["loss_nats"] for row in own if finite_number(row["loss_nats"])])
        ]
        for (size,), own in split(rows, "batch_size").items():
            title = f"{arm}, batch size {batch_text(size)}: loss; upwards {key_text(y)}"
            axes = _heat_map(title, x, y, own, min(best), max(best) + HEAT_RANGE_NATS)
            says = (f"{arm} at batch size {batch_text(size)}: lowest loss for each {key_text(x)} and {key_text(y)}"
                    f"{of_setting(study, setting)}; colours are the same at all batch sizes; grey: diverged; a dash: "
                    "not run.")  # fmt: skip
            pictures.append(picture(axes, f"heat-{setting}-{arm}-{x}-{y}-{batch_text(size)}", says, "heat_maps"))
    return pictures


def _heat_map(title: str, x: str, y: str, rows: list[Row], lowest: float, highest: float) -> Axes:
    from matplotlib import colormaps

    xs = sorted({row["x_value"] for row in rows}, key=rank)
    ys = sorted({row["y_value"] for row in rows}, key=rank)
    losses = {(row["x_value"], row["y_value"]): row["loss_nats"] for row in rows}
    colours = colormaps["viridis_r"]
    x_labels = [drawing.label_text(value_text(x, value), TICK_CHARACTERS) for value in xs]
    y_labels = [drawing.label_text(value_text(y, value), TICK_CHARACTERS) for value in ys]
    left_inches = 0.25 + 0.085 * max(map(len, y_labels))
    axes = drawing.new_axes(key_text(x), title, left_inches)
    axes.grid(False)
    for (i, x_value), (j, y_value) in product(enumerate(xs), enumerate(ys)):
        loss = losses.get((x_value, y_value))
        share = 0.0 if loss is None else float(np.clip((loss - lowest) / (highest - lowest), 0, 1))
        face = NOT_RUN if loss is None else DIVERGED if np.isinf(loss) else colours(share)
        axes.add_patch(Rectangle((i - 0.48, j - 0.47), 0.96, 0.94, facecolor=face, edgecolor="#0c0000", linewidth=0.6))
        if len(xs) <= 8:
            text = "-" if loss is None else "div." if np.isinf(loss) else f"{loss:.2f}"
            ink = INK if loss is None else "#ffffff" if share > 0.45 and np.isfinite(loss) else "#010101"
            axes.text(i, j, text, ha="center", va="center", fontsize=9.0, color=ink)
    axes.set_xlim(-0.5, len(xs) - 0.5)
    axes.set_ylim(-0.5, len(ys) - 0.5)
    every = max(1, -(-len(xs) // 8))
    axes.set_xticks(range(0, len(xs), every), x_labels[::every])
    axes.set_yticks(range(len(ys)), y_labels)
    for share in np.linspace(0, 1, HEAT_STEPS):
        label = f"{'≥ ' if share == 1 else ''}{lowest + share * (highest - lowest):.2f}"
        axes.add_patch(Rectangle((-2, -2), 1, 1, facecolor=colours(share), label=label))  # out of sight: for the legend
    return axes


def steps_to_target(study: Study) -> list[Picture]:
    """Steps to the target against batch size with the fitted a + b/B, and perfect scaling beside it."""
    pictures = []
    for c in study.critical:
        if c.law is None:
            continue
        axes = drawing.new_axes("batch size (sequences)", f"{c.arm}: steps to {c.target_nats:g} nats")
        x = np.geomspace(c.batch_sizes.min(), c.batch_sizes.max(), 60)
        axes.plot(x, c.law(x), color=INK, label="a + b/B")
        reference = c.reference_batch_size
        axes.plot(x, c.law(np.array(reference)) * reference / x, color=INK, linewidth=0.9, linestyle=(0, (2, 2)),
                  label="perfect scaling")  # fmt: skip
        for size in sorted(set(c.batch_sizes)):
            own = c.steps[c.batch_sizes == size]
            axes.plot(np.full(len(own), size), own, "o", color=drawing.batch_colour(size))
        drawn = (critical := c.batch_size or math.inf) <= 4 * float(c.batch_sizes.max())
        if drawn:
            axes.axvline(critical, color=INK, linewidth=0.9, alpha=0.6)
        drawing.batch_axis(axes, list(c.batch_sizes))
        drawing.count_axis(axes.yaxis)
        (row,) = critical_batch.critical_rows([c], [])
        says = (
            f"{c.arm}: steps to the target against batch size{of_setting(study, c.setting)}. The critical batch "
            f"size {'(vertical line) ' * drawn}is {critical_batch.estimate_text(row)}: {c.definition}."
        )
        pictures.append(picture(axes, f"critical-{c.setting}-{c.arm}", says, "steps_to_target"))
    return pictures


def critical_against_scale(study: Study) -> list[Picture]:
    pictures = []
    for law in study.rows("critical_batch_laws"):
        name, arm = law["against"], law["arm"]
        rows = [row for row in study.rows("critical_batch") if row["arm"] == arm and np.isfinite(row[name])
                and row["critical_batch_size"] is not None]  # fmt: skip
        axes = drawing.new_axes({"params": "parameters", "tokens": "tokens"}[name], "critical batch size (sequences)")
        with_bars = sorted(rows, key=lambda row: row[name])
        x, y = column(with_bars, name), column(with_bars, "critical_batch_size")
        axes.vlines(
            x, column(with_bars, "critical_batch_size_low"), column(with_bars, "critical_batch_size_high"), color=INK
        )
        axes.plot(x, y, "o", color="#0a0000")
        axes.plot(x, law["coefficient"] * x ** law["exponent"], color="#0a0000")
        drawing.count_axis(axes.xaxis)
        drawing.count_axis(axes.yaxis)
        says = f"{arm}: critical batch size against {name}, exponent {law['exponent']:.3f}; bars: 90% intervals."
        pictures.append(picture(axes, f"critical-law-{arm}-{name}", says, "critical_batch"))
    return pictures


def gradients_against_batch(study: Study) -> list[Picture]:
    pictures = []
    wanted = (("grad_norm_sq", "mean squared gradient norm"), ("update_norm", "norm of an update"),
              ("path_per_token", "path length per token"), ("noise_scale_seqs", "noise scale (sequences)"))  # fmt: skip
    fits = split(study.rows("noise_scale_fits"), "setting", "arm")
    for (setting,), rows in split(study.rows("gradients"), "setting").items():
        for name, label in wanted:
            known = [row for row in rows if (row[name] or 0) > 0]
            if len({row["batch_size"] for row in known}) < 2:
                continue
            axes = batch_axes(label, known)
            for own, style in by_arm(study, known):
                x = column(own, "batch_size")
                fit = fits.get((setting, own[0]["arm"])) if name == "grad_norm_sq" else None
                if fit:
                    style["linestyle"] = "none"
                    sizes = np.geomspace(x.min(), x.max(), 40)
                    fitted = fit[0]["signal_sq"] + fit[0]["noise_sq"] / sizes
                    axes.plot(sizes, fitted, color=style["color"], linewidth=1.0)
                axes.plot(x, column(own, name), **style)
            drawing.count_axis(axes.yaxis)
            where = of_setting(study, setting)
            says = f"{label[0].upper()}{label[1:]} against batch size{where}, over the second half of the runs."
            says += " Lines: |G|² + tr(S)/B, fitted." if fits and name == "grad_norm_sq" else ""
            pictures.append(picture(axes, f"{name}-{setting}", says, "gradients"))
    return pictures
