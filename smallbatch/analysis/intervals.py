"""Intervals from few seeds: noise is pooled over the grid, and every estimate is worked out again on drawn tables.

One idea: two or three seeds say little about the noise of one cell, but a grid repeats them in many cells. So the
standard deviation over seeds is pooled over the better half of a grid (near divergence it is another noise), and tables
of cell means are drawn around the measured ones: a parametric bootstrap. Each draw draws the standard deviation too,
as sd sqrt(df / chi2_df), so that for a single mean the interval is Student's t. Resampling the seeds themselves, the
usual bootstrap, misses the truth in a third of all cases with three seeds (tests/test_intervals.py shows it).

Intervals are central, of level LEVEL. Source: Efron and Tibshirani 1993, chapters 6 and 13; Student 1908.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

LEVEL = 0.9
DRAWS = 2000
TAILS = (0.5 - LEVEL / 2, 0.5 + LEVEL / 2)
Interval = tuple[float, float]


@dataclass(frozen=True)
class Noise:
    """Standard deviation over seeds, and the degrees of freedom that it was estimated with (0: not at all)."""

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


def generator(*names: object) -> np.random.Generator:
    """Return a random generator that depends on the names alone: the same report twice has the same intervals."""
    return np.random.default_rng(list("|".join(map(str, names)).encode(errors="backslashreplace")))


def draw_means(means: np.ndarray, seeds: np.ndarray | int, noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """Return DRAWS tables of cell means, [DRAWS, cells]; what is not finite stays as it is.

    mean + sd / sqrt(seeds) * sqrt(df / chi2_df) * z, one chi2 a draw.
    """
    scale = np.sqrt(noise.df / rng.chisquare(noise.df, DRAWS))
    z = rng.standard_normal((DRAWS, len(means)))
    return means + noise.sd / np.sqrt(np.maximum(seeds, 1)) * scale[:, None] * z


def central(draws: np.ndarray) -> Interval | None:
    """Return the central interval of drawn estimates; None where they are not numbers. Infinities count as such."""
    if np.isnan(draws).any() or not len(draws):
        return None
    low, high = np.quantile(draws, TAILS, method="nearest")
    return float(low), float(high)


def both_ways(estimate: float, draws: np.ndarray) -> Interval | None:
    """Return the interval of an estimate that is biased, such as a minimum: percentiles and their mirror image.

    A minimum over noisy cells lies below the true minimum, and the minimum over drawn tables lower still. Percentiles
    follow that bias, the basic bootstrap (2 x estimate - percentile) takes it off; neither holds its level alone over
    grids with one and with many good cells, their union does.
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
    df = total**2 / sum(v**2 / noise.df for v, (_, noise) in zip(variances, parts, strict=True))
    half = float(special.stdtrit(df, TAILS[1])) * np.sqrt(total)
    return value - half, value + half
