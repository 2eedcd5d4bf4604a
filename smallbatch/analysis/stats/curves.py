"""Loss curves: smoothing, the loss at a budget, and the cost to reach a loss.

A curve has four axes (steps, tokens, FLOPs, seconds). The loss at a budget and the cost to reach a loss are
interpolated on one of them. If only the final loss of a run is known, its curve has one point.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

AXES = ("flops", "tokens", "steps", "secs")
SMOOTHING_FRAC = 0.02  # half-width of the moving average, as a fraction of the records


@dataclass(frozen=True, eq=False)
class Curve:
    """Loss of one run at N points on four axes; NaN on an axis that was not recorded."""

    steps: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    secs: np.ndarray  # of training only, without compilation and validation
    loss_nats: np.ndarray
    end: dict[str, float]  # where the run ended, on each axis

    def axis(self, name: str) -> np.ndarray:
        return getattr(self, name)


def end_of_run(loss_nats: float, **end: float) -> Curve:
    """Return the one-point curve of a run whose final loss alone is known."""
    ends = {axis: float(end.get(axis, np.nan)) for axis in AXES}
    return Curve(**{axis: np.array([ends[axis]]) for axis in AXES}, loss_nats=np.array([loss_nats]), end=ends)


def training_curve(records: Sequence[dict[str, Any]]) -> Curve:
    """Return the curve of train records, each at the middle of the interval over which its loss is averaged.

    Seconds are tokens / (tokens per second) summed over the records. They exclude compilation, validation and
    checkpoints, whose duration depends on the machine's caches and not on the batch size.
    """
    ends = {axis: _column(records, {"steps": "step"}.get(axis, axis)) for axis in ("steps", "tokens", "flops")}
    ends["secs"] = np.cumsum(np.diff(ends["tokens"], prepend=0.0) / _column(records, "tokens_per_sec"))
    middles = {axis: (np.concatenate([[0.0], x[:-1]]) + x) / 2 for axis, x in ends.items()}
    end = {axis: float(x[-1]) if len(x) else np.nan for axis, x in ends.items()}
    return Curve(**middles, loss_nats=_column(records, "loss_nats"), end=end)


def validation_curve(records: Sequence[dict[str, Any]], training: Curve) -> Curve:
    """Return the curve of validation records; its seconds are those of training up to each record."""
    points = {axis: _column(records, {"steps": "step"}.get(axis, axis)) for axis in ("steps", "tokens", "flops")}
    known_tokens = np.concatenate([[0.0], training.tokens, [training.end["tokens"]]])
    known_secs = np.concatenate([[0.0], training.secs, [training.end["secs"]]])
    points["secs"] = np.interp(points["tokens"], known_tokens, known_secs)
    return Curve(**points, loss_nats=_column(records, "loss_nats"), end=training.end)


def smoothed(curve: Curve) -> Curve:
    """Return the curve with each loss averaged over a centred window of 2 x 2% of the records.

    The window shrinks symmetrically towards the ends, so straight lines are unchanged. A one-sided average would lag
    and delay crossings. A record without a finite loss is unchanged.
    """
    count = len(curve.loss_nats)
    half = int(SMOOTHING_FRAC * count)
    if half == 0:
        return curve
    index = np.arange(count)
    reach = np.minimum(np.minimum(index, count - 1 - index), half)
    sums = np.concatenate([[0.0], np.cumsum(curve.loss_nats)])  # non-finite from the first infinite loss on
    means = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    loss = np.where(np.isfinite(curve.loss_nats) & np.isfinite(means), means, curve.loss_nats)
    return replace(curve, loss_nats=loss)


def loss_at(curve: Curve, axis: str, budgets: np.ndarray, diverged: bool = False) -> np.ndarray:
    """Return the loss at each budget on an axis, interpolated linearly between the records around it.

    NaN before the first record. Beyond the end of the run, it is the last loss, or +inf if the run diverged.
    """
    x, end = curve.axis(axis), curve.end[axis]
    if not len(x) or not np.isfinite(x).all():
        return np.full(len(budgets), np.nan)
    loss = np.interp(budgets, x, curve.loss_nats, left=np.nan)
    return np.where(diverged & (budgets > end * (1 + 1e-9)), np.inf, loss)


def cost_to_reach(curve: Curve, axis: str, target_nats: float) -> float:
    """Return where the curve first reaches the target, interpolated between two records; +inf if it never does.

    Source of the definition: "steps to target" of Shallue et al. 2019 (arXiv 1811.03600), section 4.
    """
    x, loss = curve.axis(axis), curve.loss_nats
    reached = np.flatnonzero(loss <= target_nats)
    if not len(reached):
        return np.inf
    i = int(reached[0])
    if i == 0 or not np.isfinite(loss[i - 1]):
        return float(x[i])
    share = (loss[i - 1] - target_nats) / (loss[i - 1] - loss[i])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))


def _column(records: Sequence[dict[str, Any]], field: str) -> np.ndarray:
    return np.array([np.nan if record[field] is None else record[field] for record in records], float)
