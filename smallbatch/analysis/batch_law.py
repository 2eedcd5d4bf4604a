"""The law y = a + b / B of everything that averaging over a batch of B improves, until it does not.

One idea: steps to a loss fall as 1/B until they level off at a, and so does the mean squared gradient; b/a is the batch
size where the two parts are equal. Fitted in log y, so that every batch size counts alike, with many tables at once: a
bootstrap is one more axis.
"""

from dataclasses import dataclass

import numpy as np

from smallbatch.analysis import intervals

ITERATIONS = 60
LEAST_SHARE = 1e-6  # a and b stay above this share of their largest possible value: below it, one of them is absent


@dataclass(frozen=True, eq=False)
class BatchLaw:
    """y = a + b / B, fitted to n points; `draws` hold (a, b) under the noise, [draws, 2], or None with n < 3."""

    a: float
    b: float
    draws: np.ndarray | None
    points: int

    def __call__(self, batch_size: np.ndarray) -> np.ndarray:
        return self.a + self.b / batch_size

    @property
    def ratio(self) -> float:
        """b / a: the batch size at which both parts are equal."""
        return self.b / self.a


def fit(batch_size: np.ndarray, y: np.ndarray, *names: object) -> BatchLaw | None:
    """Fit log y = log(a + b/B) by least squares; None with fewer than two different batch sizes.

    The draws add noise to the fitted line, of the standard deviation of the residuals, sqrt(rss / (n - 2)), itself
    drawn as in intervals.py, and fit again. Source of the form: McCandlish et al. 2018 (arXiv 1812.06162, equation
    2.11); Zhang et al. 2024 (arXiv 2410.21676, section 2) fit it in logarithms.
    """
    if len(np.unique(batch_size)) < 2:
        return None
    inverse = 1.0 / np.asarray(batch_size, float)
    log_y = np.log(np.asarray(y, float))
    a, b = solve(inverse, log_y[None])[0]
    draws, df = None, len(log_y) - 2
    if df > 0:
        fitted = np.log(a + b * inverse)
        sd = float(np.sqrt(((log_y - fitted) ** 2).sum() / df))
        noise = intervals.Noise(sd, df)
        draws = solve(inverse, intervals.draw_means(fitted, 1, noise, intervals.generator(*names)))
    return BatchLaw(float(a), float(b), draws, len(log_y))


def solve(inverse: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    """Return (a, b) of each row of log_y, [rows, n], by Gauss-Newton steps in (log a, log b) that are halved as needed.

    A two-parameter problem whose normal equations are written out, so that thousands of rows are solved at once.
    """
    y = np.exp(log_y)
    highest = np.log(np.stack([y.max(1), (y / inverse).max(1)], axis=1))
    lowest = highest + np.log(LEAST_SHARE)
    theta = highest - np.log(2.0)
    damping = np.full(len(y), 1e-3)

    def parts(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a, b = np.exp(theta[:, :1]), np.exp(theta[:, 1:]) * inverse
        share_a = a / (a + b)
        return np.log(a + b) - log_y, share_a, 1 - share_a

    residual, j_a, j_b = parts(theta)
    loss = (residual**2).sum(1)
    for _ in range(ITERATIONS):
        aa, bb, ab = (j_a**2).sum(1) + damping, (j_b**2).sum(1) + damping, (j_a * j_b).sum(1)
        g_a, g_b = (j_a * residual).sum(1), (j_b * residual).sum(1)
        determinant = aa * bb - ab**2
        step = np.stack([(bb * g_a - ab * g_b), (aa * g_b - ab * g_a)], axis=1) / determinant[:, None]
        tried = np.clip(theta - np.clip(step, -2, 2), lowest, highest)
        residual_tried, j_a_tried, j_b_tried = parts(tried)
        loss_tried = (residual_tried**2).sum(1)
        if np.abs(loss_tried - loss).max() < 1e-15:
            break
        better = loss_tried <= loss
        theta, loss = np.where(better[:, None], tried, theta), np.where(better, loss_tried, loss)
        residual, j_a, j_b = (
            np.where(better[:, None], new, old)
            for new, old in ((residual_tried, residual), (j_a_tried, j_a), (j_b_tried, j_b))
        )
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-12, 1e6)
    return np.exp(theta)
