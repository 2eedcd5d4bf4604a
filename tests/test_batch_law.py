"""The law a + b/B against scipy's least squares, and on data that lie on it."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from smallbatch.analysis import batch_law, power_law

SIZES = np.array([1.0, 4, 16, 64, 256])


def test_points_on_the_law_give_it_back():
    law = batch_law.fit(SIZES, 120 + 3000 / SIZES, "exact")
    assert (law.a, law.b) == pytest.approx((120, 3000), rel=1e-6)
    assert law.ratio == pytest.approx(25) and law(np.array(2.0)) == pytest.approx(1620)


@pytest.mark.parametrize("seed", range(8))
def test_the_fit_is_scipys(seed):
    rng = np.random.default_rng(seed)
    y = (10 ** rng.uniform(0, 4) + 10 ** rng.uniform(2, 5) / SIZES) * np.exp(0.2 * rng.standard_normal(5))
    residual = lambda theta: np.log(np.exp(theta[0]) + np.exp(theta[1]) / SIZES) - np.log(y)
    theirs = least_squares(residual, [np.log(y[-1]), np.log(y[0])], xtol=1e-14, ftol=1e-14, gtol=1e-14)
    law = batch_law.fit(SIZES, y, seed)
    ours = residual([np.log(law.a), np.log(law.b)])
    assert ours @ ours <= 2 * theirs.cost * (1 + 1e-9)


def test_perfect_scaling_ends_at_a_ratio_far_beyond_the_data():
    law = batch_law.fit(SIZES, 1000 / SIZES, "perfect")
    assert law.ratio > 100 * SIZES.max()


def test_one_batch_size_is_no_law():
    assert batch_law.fit(np.array([4.0, 4.0]), np.array([10.0, 11.0]), "one") is None
    assert batch_law.fit(np.array([1.0, 4.0]), np.array([10.0, 5.0]), "two").draws is None


def test_a_power_law_is_numpys_line_in_logarithms():
    x, y = np.array([1.0, 4, 16, 64]), np.array([2.0, 3.1, 4.2, 7.0])
    law = power_law.fit(x, y)
    assert (law.exponent, np.log(law.coefficient)) == pytest.approx(tuple(np.polyfit(np.log(x), np.log(y), 1)))
    assert law.interval_from == "scatter" and law.interval[0] < law.exponent < law.interval[1]
    assert power_law.fit(x[:2], y[:2]).interval is None
    assert power_law.fit(x[:1], y[:1]) is None
