"""Fit y = a + b / B to the steps to a loss, or to the mean squared gradient norm, against batch size B.

Both decrease as 1/B towards a. The two terms are equal at B = b/a. The law is fitted in log y, so every batch size
has the same weight.

The data may bound b/a on one side only: under perfect scaling (a = 0) any large b/a fits, and where y is constant
(b = 0) any small b/a fits. The interval of b/a then ends at infinity or at 0. tests/test_coverage.py tests its
coverage with 3 to 9 batch sizes and 1 or 3 seeds, for interior values of b/a and at both limits.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from smallbatch.analysis.stats import intervals
from smallbatch.analysis.stats.intervals import Interval

# Steps and norms are read from periodic records, so they are accurate to about 1% at best, however well a law fits
# them. Without this limit, noise-free data would give intervals of zero width.
LEAST_LOG_ERROR = 0.01
LARGEST_LOGIT = 30.0  # share of a from 1e-13 to 1 - 1e-13; beyond these limits, the smaller term is 0
LOGITS = np.linspace(-LARGEST_LOGIT, LARGEST_LOGIT, 1201)


@dataclass(frozen=True, eq=False)
class BatchLaw:
    """y = a + b / B, fitted to `points` batch sizes; a term that does not improve the fit is 0."""

    a: float
    b: float
    ratio_interval: Interval | None  # of b / a, from 0 to infinity; None with fewer than three batch sizes
    points: int

    def __call__(self, batch_size: np.ndarray) -> np.ndarray:
        return self.a + self.b / batch_size

    @property
    def ratio(self) -> float:
        """b / a: the batch size at which both terms are equal; infinite under perfect scaling."""
        return self.b / self.a if self.a else math.inf


def fit(batch_size: np.ndarray, y: np.ndarray) -> BatchLaw | None:
    """Fit log y = log(a + b/B) by least squares; None with fewer than two different batch sizes.

    Values at the same batch size (seeds) are first averaged in log y. They share the deviation of that batch
    size from the law, so they are not independent points.

    The interval contains all b/a whose sum of squares is less than t^2 s^2 above the lowest (profile likelihood; Bates
    and Watts 1988, section 6.1), with t of n - 2 degrees of freedom. s is the largest of three: the scatter of the n
    batch sizes about the law, the error of their means over seeds, and LEAST_LOG_ERROR. Source of the law: McCandlish
    et al. 2018 (arXiv 1812.06162, equation 2.11); Zhang et al. 2024 (arXiv 2410.21676, section 2) fit it in logarithms.
    """
    batch_size, log_y = np.asarray(batch_size, float), np.log(np.asarray(y, float))
    sizes = np.unique(batch_size)
    if len(sizes) < 2:
        return None
    means = np.array([log_y[batch_size == size].mean() for size in sizes])
    middle = float(np.exp(np.log(sizes).mean()))
    inverse = middle / sizes

    def squares(share):
        """Return the sum of squares of log y about each law; a is this share of y at the middle batch size."""
        share = np.asarray(share)[..., None]
        residual = means - np.log(share + (1 - share) * inverse)
        return ((residual - residual.mean(-1, keepdims=True)) ** 2).sum(-1)

    share = _best_share(squares)
    scale = float(np.exp((means - np.log(share + (1 - share) * inverse)).mean()))
    interval = None
    if len(sizes) > 2:
        df = len(sizes) - 2
        variance = max(squares(share) / df, _variance_over_seeds(batch_size, log_y), LEAST_LOG_ERROR**2)
        allowed = squares(share) + float(special.stdtrit(df, intervals.TAILS[1])) ** 2 * variance
        least, most = _shares_within(squares, share, allowed)
        interval = (1 - most) / most * middle, (1 - least) / least * middle if least else math.inf
    return BatchLaw(scale * share, scale * (1 - share) * middle, interval, len(sizes))


def _best_share(squares) -> float:
    best = LOGITS[int(np.argmin(squares(special.expit(LOGITS))))]
    step = LOGITS[1] - LOGITS[0]
    found = optimize.minimize_scalar(
        lambda logit: squares(special.expit(logit)),
        bounds=(best - step, best + step),
        method="bounded",
        options={"xatol": 1e-10},
    )
    share = float(special.expit(found.x))
    # Prefer 0 to a tiny term that improves the fit by rounding errors only.
    return next((end for end in (0.0, 1.0) if squares(end) <= squares(share) * (1 + 1e-9) + 1e-18), share)


def _shares_within(squares, best: float, allowed: float) -> tuple[float, float]:
    """Return the smallest and the largest share of a whose sum of squares is below the limit."""
    ends = []
    for end, sign in ((0.0, -1.0), (1.0, 1.0)):
        if squares(end) <= allowed:
            ends.append(end)
            continue
        logit = float(np.clip(special.logit(best), -LARGEST_LOGIT, LARGEST_LOGIT))
        crossing = optimize.brentq(lambda x: squares(special.expit(x)) - allowed, logit, sign * 2 * LARGEST_LOGIT)
        ends.append(float(special.expit(crossing)))
    return ends[0], ends[1]


def _variance_over_seeds(batch_size: np.ndarray, log_y: np.ndarray) -> float:
    """Return the average variance of the means over seeds; 0 if no batch size has two seeds."""
    repeated = [log_y[batch_size == size] for size in np.unique(batch_size)]
    variances = [values.var(ddof=1) / len(values) for values in repeated if len(values) > 1]
    return float(np.mean(variances)) if variances else 0.0
