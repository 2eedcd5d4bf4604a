"""Convert hyperparameters tuned at one batch size to another, by one of four rules, in float64.

No rule is optimal for every problem. Marek et al. 2025 (arXiv 2507.07101, sections 2 and 4.3) found that `half_life`
holds from batch size 1 up; `fixed` is its control. `sqrt` keeps the noise of adaptive methods constant, and `linear`
that of SGD.
"""

import math
from dataclasses import dataclass, replace

from smallbatch.errors import UserError


@dataclass(frozen=True)
class Tuned:
    """Hyperparameters at a batch size. one_minus_b is 1 - b per step, or None if the optimizer has no such average."""

    peak_lr: float
    one_minus_b1: float | None
    one_minus_b2: float | None
    eps: float
    weight_decay: float = 0.0


def transfer(rule: str, tuned: Tuned, ratio: float, lr_exponent: float | None = None, keep_tau: bool = False) -> Tuned:
    """Return the hyperparameters at `ratio` = k times the batch size at which `tuned` was tuned.

    - half_life: b2 <- b2^k, which keeps its half-life in tokens; b1 stays per step; lr <- lr k^p.
    - fixed: both decays stay per step; lr <- lr k^p.
    - sqrt: lr <- lr sqrt(k), 1-b <- k (1-b) for both, eps <- eps / sqrt(k) (Malladi et al. 2022, arXiv 2205.10287:
      if noise dominates, gradients shrink as 1/sqrt(k), and so must eps).
    - linear: lr <- lr k (Goyal et al. 2017, arXiv 1706.02677); everything else is unchanged.

    keep_tau: also set wd <- wd k lr / lr', which keeps the timescale of weight decay, 1 / (lr wd) updates, constant in
        tokens (Bergsma et al. 2025, arXiv 2505.13738). Otherwise weight decay is unchanged.

    Raises UserError if `sqrt` gives a 1 - b above 1. `config.validate` has checked the rule and its exponent.
    """
    found = _by_rule(rule, tuned, ratio, lr_exponent)
    if keep_tau:
        found = replace(found, weight_decay=tuned.weight_decay * ratio * tuned.peak_lr / found.peak_lr)
    return found


def _by_rule(rule: str, tuned: Tuned, ratio: float, lr_exponent: float | None) -> Tuned:
    if rule == "sqrt":
        return replace(
            tuned,
            peak_lr=tuned.peak_lr * math.sqrt(ratio),
            one_minus_b1=_times(tuned.one_minus_b1, ratio, "b1"),
            one_minus_b2=_times(tuned.one_minus_b2, ratio, "b2"),
            eps=tuned.eps / math.sqrt(ratio),
        )
    if rule == "linear":
        return replace(tuned, peak_lr=tuned.peak_lr * ratio)
    assert rule in ("half_life", "fixed") and lr_exponent is not None, (rule, lr_exponent)
    tuned = replace(tuned, peak_lr=tuned.peak_lr * ratio**lr_exponent)
    if rule == "fixed" or tuned.one_minus_b2 in (None, 1.0):
        return tuned
    return replace(tuned, one_minus_b2=-math.expm1(ratio * math.log1p(-tuned.one_minus_b2)))


def _times(one_minus_b: float | None, ratio: float, name: str) -> float | None:
    if one_minus_b is None:
        return None
    if one_minus_b * ratio > 1:
        raise UserError(
            f"the sqrt rule gives 1 - {name} = {one_minus_b:g} x {ratio:g}, above 1, but is valid only far below 1; "
            "use the half_life rule or a smaller batch size"
        )
    return one_minus_b * ratio
