"""Average the gradient and update norms in the records of a run (train.diagnostics); see ../gradients.py."""

from collections.abc import Sequence
from typing import Any

import numpy as np

FIELDS = ("grad_norm", "update_norm", "update_rms", "update_cosine", "path_per_token", "clipped_frac")
SQUARES = ("grad_signal_sq", "grad_noise_sq")
# Marks runs whose noise scale is estimated from successive gradients. The estimate is biased while the weights change
# fast (1,161 sequences instead of 252 on a quadratic), so it has a separate column and is never compared.
SUCCESSIVE = "noise_from_successive_gradients"


def second_half(records: Sequence[dict[str, Any]], context_tokens: float) -> dict[str, float]:
    """Return the means of the gradient and update fields over the second half of the train records.

    The first half includes the warm-up and the initial drop of the loss, where norms differ in magnitude. Fields
    without values are omitted.

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

    def column(name: str) -> np.ndarray:
        values = (record.get(name) for record in records)
        return np.array([np.nan if value is None else value for value in values], float)

    tokens, steps = (np.diff(column(name), prepend=0.0) for name in ("tokens", "step"))
    batch_size = np.divide(tokens / context_tokens, steps, out=np.full(len(records), np.nan), where=steps > 0)
    return column("grad_signal_sq") + column("grad_noise_sq") / batch_size
