"""What hyperparameters tuned at one batch size become at another: four rules, each by its name, in float64.

None of them is an optimum for every problem. `half_life` is what Marek et al. 2025 (arXiv 2507.07101, sections 2 and
4.3) found to hold from batch size 1 up; `fixed` is the control that it is compared with; `sqrt` keeps the noise of
adaptive methods the same, which is an equivalence and not an optimum; `linear` does so for SGD.
"""

import math
from dataclasses import dataclass, replace

from smallbatch.errors import UserError

RULES = ("half_life", "fixed", "sqrt", "linear")
FREE_EXPONENT = ("half_life", "fixed")  # rules that leave the exponent of the learning rate to their user


@dataclass(frozen=True)
class Tuned:
    """Hyperparameters at a batch size. Decays are one_minus_bs, 1 - b, per step; None where there is no average."""

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

    keep_tau: also set wd <- wd k lr / lr', which keeps the timescale tau of weight decay, 1 / (lr wd) updates, constant
        in tokens (Bergsma et al. 2025, arXiv 2505.13738). Otherwise weight decay is unchanged, and tau changes.

    Raises:
        UserError: an unknown rule, an exponent that is missing or has no effect, or a 1 - b above 1 after `sqrt`.
    """
    if rule not in RULES:
        raise UserError(f"there is no transfer rule {rule!r}: {', '.join(RULES)}")
    if (lr_exponent is None) is (rule in FREE_EXPONENT):
        raise UserError(
            f"the transfer rule {rule} {'needs an' if lr_exponent is None else 'has its own'} exponent of the learning "
            "rate (lr_exponent: 0 keeps it, 0.16 to 0.25 was tuned for Adam, 0.5 and 1 are the sqrt and linear rules)"
        )
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
    assert lr_exponent is not None
    tuned = replace(tuned, peak_lr=tuned.peak_lr * ratio**lr_exponent)
    if rule == "fixed" or tuned.one_minus_b2 in (None, 1.0):
        return tuned
    return replace(tuned, one_minus_b2=-math.expm1(ratio * math.log1p(-tuned.one_minus_b2)))


def _times(one_minus_b: float | None, ratio: float, name: str) -> float | None:
    if one_minus_b is None:
        return None
    if one_minus_b * ratio > 1:
        raise UserError(
            f"the sqrt rule would make 1 - {name} = {one_minus_b:g} x {ratio:g}, above 1: it holds only where that is "
            "far below 1; choose the half_life rule or a smaller batch size"
        )
    return one_minus_b * ratio
