"""Gradients and updates against batch size, where runs recorded them (train.diagnostics).

One idea: E|g_B|^2 = |G|^2 + tr(S)/B. Over batch sizes that is a line in 1/B whose ratio of slope to intercept is the
noise scale; inside each run it was estimated too, from parts of a batch or successive gradients. The two need not
agree: runs at different batch sizes are at different places. Source: McCandlish et al. 2018 (arXiv 1812.06162),
section 2 and appendix A.1.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from smallbatch.analysis import batch_law
from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report.tables import Row
from smallbatch.analysis.stats.equal_flops import bounds, choose

FIELDS = ("grad_norm", "update_norm", "update_rms", "update_cosine", "path_per_token", "clipped_frac")
SQUARES = ("grad_signal_sq", "grad_noise_sq")
# Marks runs whose noise scale is estimated from successive gradients. This estimate is biased while the weights change
# fast (1,161 sequences instead of 252 on a quadratic), so it has a separate column and is never compared.
SUCCESSIVE = "noise_from_successive_gradients"


def second_half(records: Sequence[dict[str, Any]], context_tokens: float) -> dict[str, float]:
    """Return the means of the gradient and update fields over the second half of the train records.

    The first half includes the warm-up and the initial drop of the loss, where norms differ in magnitude. Fields
    without any number are omitted.

    `grad_norm_sq` is E|g|^2, computed from the recorded means as |G|^2 + tr(S)/B. Both estimators of the noise scale
    (optim/diagnostics.py) satisfy this exactly at every update. The square of the recorded mean of |g| would be too
    low by the variance of |g|, which is larger at smaller batch sizes.
    """
    half = records[len(records) // 2 :]
    found: dict[str, float] = {}
    recorded = {name for record in half[-1:] for name in record}  # a run records the same fields throughout
    for name in recorded.intersection((*FIELDS, *SQUARES)):
        values = [record[name] for record in half if record.get(name) is not None]
        if values:
            found[name] = float(np.mean(values))
    squares = _squared_norms(records, context_tokens)[len(records) // 2 :]
    if np.isfinite(squares).any():
        found["grad_norm_sq"] = float(np.nanmean(squares))
    return found


def _squared_norms(records: Sequence[dict[str, Any]], context_tokens: float) -> np.ndarray:
    """Return E|g|^2 of each record, NaN where it is unknown.

    The batch size is computed from the tokens and steps of each record, since it may change during a run.
    """
    column = lambda name: np.array([np.nan if (x := record.get(name)) is None else x for record in records], float)
    tokens, steps = (np.diff(column(name), prepend=0.0) for name in ("tokens", "step"))
    batch_size = np.divide(tokens / context_tokens, steps, out=np.full(len(records), np.nan), where=steps > 0)
    return column("grad_signal_sq") + column("grad_noise_sq") / batch_size


def gradient_rows(table: RunTable) -> list[Row]:
    """Return gradient and update norms of the chosen cell at each batch size, means over its seeds."""
    rows: list[Row] = []
    for group in table.groups:
        choice = choose(group)
        runs = [run for run in group.runs[choice.index] if run and run.gradients] if choice else []
        if not runs:
            continue
        mean = lambda name, runs=runs: _mean([run.gradients[name] for run in runs if name in run.gradients])
        signal, noise = mean("grad_signal_sq"), mean("grad_noise_sq")
        scale = noise / signal if noise is not None and signal is not None and signal > 0 else None
        successive = any(SUCCESSIVE in run.gradients for run in runs)
        biased_scale, scale = (scale, None) if successive else (None, scale)
        context = _mean([run.context_tokens for run in runs if np.isfinite(run.context_tokens)])
        rows.append(
            {"setting": group.setting, "arm": group.arm, "batch_size": group.batch_size, "seeds": len(runs),
             "grad_norm_sq": mean("grad_norm_sq"), "grad_signal_sq": signal, "grad_noise_sq": noise,
             "noise_scale_seqs": scale, "noise_scale_tokens": scale * context if scale and context else None,
             "biased_noise_scale_seqs_of_successive_gradients": biased_scale,
             **{name: mean(name) for name in FIELDS if name != "grad_norm"}}
        )  # fmt: skip
    return rows


def noise_scale_fits(rows: list[Row]) -> list[Row]:
    """Fit E|g|^2 = |G|^2 + tr(S)/B over the batch sizes of each arm; needs three."""
    fits: list[Row] = []
    for setting, arm in dict.fromkeys((row["setting"], row["arm"]) for row in rows):
        own = [r for r in rows if (r["setting"], r["arm"]) == (setting, arm) and (r["grad_norm_sq"] or 0) > 0]
        if len(own) < 3:
            continue
        sizes = np.array([row["batch_size"] for row in own])
        law = batch_law.fit(sizes, np.array([row["grad_norm_sq"] for row in own]))
        if law is None:
            continue
        low, high = law.ratio_interval or (0.0, math.inf)
        ratio = law.ratio if low > 0 and math.isfinite(high) else None  # no estimate if bounded on one side only
        fits.append(
            {"setting": setting, "arm": arm, "signal_sq": law.a, "noise_sq": law.b, "noise_scale_seqs": ratio,
             **bounds("noise_scale_seqs", law.ratio_interval), "batch_sizes": law.points}
        )  # fmt: skip
    return fits


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
