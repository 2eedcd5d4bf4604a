"""Power laws y = c x^p, fitted in logarithms, with the interval of the exponent.

One idea: a law is a straight line in log-log. Where the noise of the y is known by draws, the interval comes from
fitting every draw; otherwise from the scatter around the line, by Student's t with n - 2 degrees of freedom.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from smallbatch.analysis import intervals
from smallbatch.analysis.intervals import Interval


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x^exponent over n points."""

    exponent: float
    coefficient: float
    interval: Interval | None  # of the exponent
    interval_from: str  # seeds | scatter | nothing
    points: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.coefficient * x**self.exponent


def fit(x: np.ndarray, y: np.ndarray, y_draws: np.ndarray | None = None) -> PowerLaw | None:
    """Fit log y = log c + p log x by least squares; None where there are not two different x.

    Args:
        x, y: positive, one a point.
        y_draws: [draws, points] of y under its noise, or None.
    """
    if len(np.unique(x)) < 2:
        return None
    centred = np.log(x) - np.log(x).mean()
    slope_of = lambda log_y: log_y @ centred / (centred @ centred)
    exponent = float(slope_of(np.log(y)))
    coefficient = float(np.exp(np.log(y).mean() - exponent * np.log(x).mean()))
    interval, source = None, "nothing"
    if y_draws is not None:
        interval, source = intervals.central(slope_of(np.log(y_draws))), "seeds"
    elif len(x) > 2:
        residual = np.log(y) - np.log(coefficient) - exponent * np.log(x)
        error = np.sqrt(residual @ residual / (len(x) - 2) / (centred @ centred))
        half = float(special.stdtrit(len(x) - 2, intervals.TAILS[1]) * error)
        interval, source = (exponent - half, exponent + half), "scatter"
    return PowerLaw(exponent, coefficient, interval, source, len(x))
