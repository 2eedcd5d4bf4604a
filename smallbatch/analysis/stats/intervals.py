"""Compute intervals from few seeds, with the variance over seeds pooled over a grid.

Two or three seeds give a poor estimate of the variance of one cell, but a grid has many cells. The standard deviation
over seeds is therefore pooled over the better half of a grid (near divergence it differs). Four methods are used:

- the mean of a cell and the difference of two means: Student's t and Welch's t;
- the lowest mean and the width of a basin: a parametric bootstrap over simulated tables of cell means. Each draw also
  samples the standard deviation, as sd sqrt(df / chi2_df), so the interval of a single mean equals Student's t. The
  usual bootstrap, which resamples seeds, misses the true value in a third of all cases with three seeds;
- the best value of a hyperparameter: the cells that do not differ significantly from the best one (`maybe_best`),
  which learning_rates.py turns into a bracket;
- laws (batch_law.py, power_law.py): the scatter of the points about the fitted line, by Student's t.

Intervals are central and have level LEVEL. tests/test_intervals.py and tests/test_coverage.py test the coverage of each
on synthetic data.
Source: Efron and Tibshirani 1993, chapters 6 and 13; Student 1908; Welch 1947; Hsu 1981 (the best of several means).
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy import special

LEVEL = 0.9
DRAWS = 2000
TAILS = (0.5 - LEVEL / 2, 0.5 + LEVEL / 2)
Interval = tuple[float, float]


@dataclass(frozen=True)
class Noise:
    """Standard deviation over seeds, and the degrees of freedom that it was estimated with (0: no estimate)."""

    sd: float
    df: int


def pooled_noise(loss_PxS: np.ndarray) -> Noise:
    """Return the noise over seeds, pooled over the cells with two seeds or more in the better half of the grid.

    sd^2 = sum_p sum_s (loss_ps - mean_p)^2 / sum_p (S_p - 1).
    """
    known = ~np.isnan(loss_PxS)
    counts = known.sum(1)
    usable = (counts >= 2) & np.isfinite(np.where(known, loss_PxS, 0.0)).all(1)
    if not usable.any():
        return Noise(np.nan, 0)
    loss, known, counts = loss_PxS[usable], known[usable], counts[usable]
    means = np.where(known, loss, 0.0).sum(1) / counts
    better = np.argsort(means, kind="stable")[: (len(means) + 1) // 2]
    squares = np.where(known, (loss - means[:, None]) ** 2, 0.0).sum(1)
    df = int((counts - 1)[better].sum())
    return Noise(float(np.sqrt(squares[better].sum() / df)), df)


def draw_means(means: np.ndarray, seeds: np.ndarray | int, noise: Noise) -> np.ndarray:
    """Return DRAWS tables of cell means, [DRAWS, cells]; non-finite means are unchanged.

    A draw is mean + sd / sqrt(seeds) * sqrt(df / chi2_df) * z, with one chi2 per table. The given numbers seed the
    random numbers, independently of the order of the cells. The same data therefore give the same intervals, whatever
    the name of the file or the order of its rows.
    """
    means, seeds = np.asarray(means, float), np.broadcast_to(np.maximum(seeds, 1), np.shape(means))
    order = np.lexsort((seeds, means))
    rng = _generator(means[order], seeds[order], np.array([noise.sd, noise.df]))
    scale = np.sqrt(noise.df / rng.chisquare(noise.df, DRAWS))
    z = np.empty((DRAWS, len(means)))
    z[:, order] = rng.standard_normal((DRAWS, len(means)))
    return means + noise.sd / np.sqrt(seeds) * scale[:, None] * z


def _generator(*arrays: np.ndarray) -> np.random.Generator:
    numbers = np.concatenate(arrays).astype("<f8") + 0.0  # + 0.0 turns -0.0 into 0.0
    return np.random.default_rng(int.from_bytes(hashlib.sha256(numbers.tobytes()).digest(), "big"))


def maybe_best(means: np.ndarray, seeds: np.ndarray, noise: Noise) -> np.ndarray:
    """Return which cells may have the lowest true mean: a set that contains it with probability at least LEVEL.

    A cell is in the set if its mean exceeds the lowest by at most t sd sqrt(1/S + 1/S_lowest), with a Bonferroni
    correction for the number of comparisons. Source: Hsu 1981, "Simultaneous confidence intervals for all
    distances from the 'best'", Annals of Statistics 9.
    """
    lowest = int(np.argmin(means))
    t = special.stdtrit(noise.df, 1 - (1 - LEVEL) / max(1, len(means) - 1))
    return means - means[lowest] <= t * noise.sd * np.sqrt(1 / seeds + 1 / seeds[lowest])


def central(draws: np.ndarray) -> Interval | None:
    """Return the central interval of drawn estimates; None without draws or if one is NaN. Infinities are valid."""
    if np.isnan(draws).any() or not len(draws):
        return None
    low, high = np.quantile(draws, TAILS, method="nearest")
    return float(low), float(high)


def both_ways(estimate: float, draws: np.ndarray) -> Interval | None:
    """Return the interval of a biased estimate, such as a minimum: the union of percentile and basic bootstrap.

    The minimum over noisy cells is below the true minimum, and the minimum over drawn tables is lower still. The
    percentile interval has this bias; the basic bootstrap (2 x estimate - percentile) reverses it. Neither alone has
    coverage LEVEL both on grids with one good cell and on grids with many; their union does.
    """
    interval = central(draws)
    if interval is None:
        return None
    low, high = interval
    return min(low, 2 * estimate - high), max(high, 2 * estimate - low)


def student(mean: float, seeds: int, noise: Noise) -> Interval | None:
    """Return Student's interval of the mean of `seeds` values: mean -+ t_df sd / sqrt(seeds); None without noise."""
    return difference(mean, [(seeds, noise)])


def difference(value: float, parts: list[tuple[int, Noise]]) -> Interval | None:
    """Return the interval of a sum or difference of independent means, each of (seeds, noise), after Welch 1947."""
    if not np.isfinite(value) or any(noise.df == 0 or seeds == 0 for seeds, noise in parts):
        return None
    variances = [noise.sd**2 / seeds for seeds, noise in parts]
    total = sum(variances)
    if total == 0:
        return value, value
    df = total**2 / sum(variance**2 / noise.df for variance, (_, noise) in zip(variances, parts, strict=True))
    half = float(special.stdtrit(df, TAILS[1])) * np.sqrt(total)
    return value - half, value + half
