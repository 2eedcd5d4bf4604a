"""Summarize gradients and updates against batch size, if the runs recorded them (train.diagnostics).

E|g_B|^2 = |G|^2 + tr(S)/B, for the gradient g_B of a batch of B sequences, the true gradient G and the covariance S of
the gradients of single sequences. The ratio tr(S)/|G|^2 is the noise scale. It is estimated in two ways: by a fit over
batch sizes, and within each run, from parts of a batch or from successive gradients. The two may differ, since runs
with different batch sizes reach different weights.
Source: McCandlish et al. 2018 (arXiv 1812.06162), section 2 and appendix A.1.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from smallbatch.analysis.read.gradient_records import FIELDS, SQUARES, SUCCESSIVE
from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report import drawing
from smallbatch.analysis.report.options import Options
from smallbatch.analysis.report.section import Analysis, Figure, Section, Table
from smallbatch.analysis.report.tables import Row, column, group_columns, split
from smallbatch.analysis.stats import batch_law
from smallbatch.analysis.stats.equal_flops import bounds, choose


def gradient_rows(runs: RunTable) -> list[Row]:
    """Return gradient and update norms of the selected config at each batch size, means over its seeds."""
    rows: list[Row] = []
    for group in runs.groups:
        choice = choose(group)
        recorded = [run for run in group.runs[choice.index] if run and run.gradients] if choice else []
        if not recorded:
            continue
        names = ("grad_norm_sq", *SQUARES, *FIELDS[1:])
        mean = {name: _mean([run.gradients.get(name, math.nan) for run in recorded]) for name in names}
        signal, noise = mean["grad_signal_sq"], mean["grad_noise_sq"]
        scale = noise / signal if noise is not None and signal is not None and signal > 0 else None
        biased = any(SUCCESSIVE in run.gradients for run in recorded)
        context_tokens = _mean([run.context_tokens for run in recorded])
        rows.append(
            {
                **group_columns(group),
                "seeds": len(recorded),
                **{name: mean[name] for name in ("grad_norm_sq", *SQUARES)},
                "noise_scale_seqs": None if biased else scale,
                "noise_scale_tokens": scale * context_tokens if scale and context_tokens and not biased else None,
                "biased_noise_scale_seqs_of_successive_gradients": scale if biased else None,
                **{name: mean[name] for name in FIELDS[1:]},
            }
        )
    return rows


def _mean(values: list[float]) -> float | None:
    """Return the mean of the known values; None if there are none."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None


def noise_scale_fits(rows: Sequence[Row]) -> list[Row]:
    """Fit E|g|^2 = |G|^2 + tr(S)/B over the batch sizes of each method, for methods with at least three."""
    fits: list[Row] = []
    usable = (row for row in rows if (row["grad_norm_sq"] or 0) > 0)
    for (setting, method), own in split(usable, "setting", "arm").items():
        law = batch_law.fit(column(own, "batch_size"), column(own, "grad_norm_sq")) if len(own) > 2 else None
        if law is None:
            continue
        low, high = law.ratio_interval or (0.0, math.inf)
        bounded = low > 0 and math.isfinite(high)  # otherwise there is no estimate
        fits.append(
            {
                "setting": setting,
                "arm": method,
                "signal_sq": law.a,
                "noise_sq": law.b,
                "noise_scale_seqs": law.ratio if bounded else None,
                **bounds("noise_scale_seqs", law.ratio_interval),
                "batch_sizes": law.points,
            }
        )
    return fits


def tables(runs: RunTable, options: Options) -> list[Table]:
    rows = gradient_rows(runs)
    return [
        Table("gradients", "Gradients and updates", rows),
        Table("noise_scale_fits", "Noise scale over batch sizes", noise_scale_fits(rows)),
    ]


def figures(analysis: Analysis) -> Iterator[Figure]:
    labels = {
        "grad_norm_sq": "mean squared gradient norm",
        "update_norm": "norm of an update",
        "path_per_token": "path length per token",
        "noise_scale_seqs": "noise scale (sequences)",
    }
    fits = split(analysis.rows("noise_scale_fits"), "setting", "arm")
    for (setting,), rows in split(analysis.rows("gradients"), "setting").items():
        for name, label in labels.items():
            known = [row for row in rows if (row[name] or 0) > 0]
            if len({row["batch_size"] for row in known}) < 2:
                continue
            axes = drawing.batch_axes(label, [row["batch_size"] for row in known])
            for own, style in drawing.by_method(analysis.runs.arms, known):
                x = column(own, "batch_size")
                fit = fits.get((setting, own[0]["arm"])) if name == "grad_norm_sq" else None
                if fit:
                    sizes = np.geomspace(x.min(), x.max(), 40)
                    fitted = fit[0]["signal_sq"] + fit[0]["noise_sq"] / sizes
                    axes.plot(sizes, fitted, color=style["color"], linewidth=1.0)
                    style["linestyle"] = "none"
                axes.plot(x, column(own, name), **style)
            drawing.count_axis(axes.yaxis)
            where = analysis.in_setting(setting)
            caption = f"{label[0].upper()}{label[1:]} against batch size{where}, mean over the second half of the runs."
            caption += " Lines: fitted |G|² + tr(S)/B." if fits and name == "grad_norm_sq" else ""
            yield Figure(f"{name}-{setting}", axes, caption, "gradients")


def empty(analysis: Analysis) -> str:
    from_file = all("file" in source for source in analysis.runs.provenance)
    reason = "a file of runs has no gradients" if from_file else "set train.diagnostics to record them"
    return f"No run recorded gradients; {reason}."


SECTION = Section(
    name="gradients",
    title="Gradients and updates",
    description=(
        "E|g|² = |G|² + tr(S)/B; the noise scale tr(S)/|G|² is the batch size at which both terms are equal "
        "(McCandlish et al. 2018)."
    ),
    tables=tables,
    figures=figures,
    empty=empty,
)
