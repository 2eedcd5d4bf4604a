"""Fit power laws y = c x^p in logarithms, with an interval of the exponent.

The interval of the exponent combines two errors: the scatter of the points about the line, by Student's t with n - 2
degrees of freedom, and the errors of the points themselves, where they are known. Two points have no scatter and
therefore no interval. tests/test_coverage.py tests the coverage with 3 to 7 points with scatter, errors, or both.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from smallbatch.analysis.stats import intervals
from smallbatch.analysis.stats.intervals import Interval


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x^exponent over n points."""

    exponent: float
    coefficient: float
    interval: Interval | None  # of the exponent
    interval_from: str  # scatter | scatter and points | nothing
    points: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.coefficient * x**self.exponent


def fit(x: np.ndarray, y: np.ndarray, half_widths: np.ndarray | None = None) -> PowerLaw | None:
    """Fit log y = log c + p log x by least squares; None with fewer than two different x.

    The scatter includes the errors of the points, but few points may lie on a line by chance. The half-width is
    therefore the larger of two: t * scatter, and the half-widths of the points propagated as independent errors.

    Args:
        x, y: positive, one per point.
        half_widths: half-widths of the intervals of log y at level LEVEL, one per point; None if unknown.
    """
    if len(np.unique(x)) < 2:
        return None
    centred = np.log(x) - np.log(x).mean()
    sum_squares = centred @ centred
    exponent = float(np.log(y) @ centred / sum_squares)
    coefficient = float(np.exp(np.log(y).mean() - exponent * np.log(x).mean()))
    if len(x) < 3:
        return PowerLaw(exponent, coefficient, None, "nothing", len(x))
    residual = np.log(y) - np.log(coefficient) - exponent * np.log(x)
    error = np.sqrt(residual @ residual / (len(x) - 2) / sum_squares)
    half, source = float(special.stdtrit(len(x) - 2, intervals.TAILS[1]) * error), "scatter"
    if half_widths is not None:
        weighted = centred * half_widths / sum_squares
        half, source = max(half, float(np.sqrt(weighted @ weighted))), "scatter and points"
    return PowerLaw(exponent, coefficient, (exponent - half, exponent + half), source, len(x))
