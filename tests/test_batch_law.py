"""The fits of a + b/B and of power laws."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from smallbatch.analysis.stats import batch_law, power_law

SIZES = np.array([1.0, 4, 16, 64, 256])


def test_exact_points_recover_the_law():
    law = batch_law.fit(SIZES, 120 + 3000 / SIZES)
    assert (law.a, law.b) == pytest.approx((120, 3000), rel=1e-6)
    assert law.ratio == pytest.approx(25) and law(np.array(2.0)) == pytest.approx(1620)


@pytest.mark.parametrize("seed", range(8))
def test_the_fit_is_as_good_as_scipys(seed):
    rng = np.random.default_rng(seed)
    y = (10 ** rng.uniform(0, 4) + 10 ** rng.uniform(2, 5) / SIZES) * np.exp(0.2 * rng.standard_normal(5))
    residual = lambda theta: np.log(np.exp(theta[0]) + np.exp(theta[1]) / SIZES) - np.log(y)
    theirs = least_squares(residual, [np.log(y[-1]), np.log(y[0])], xtol=1e-14, ftol=1e-14, gtol=1e-14)
    law = batch_law.fit(SIZES, y)
    ours = residual([np.log(law.a), np.log(law.b)])
    assert ours @ ours <= 2 * theirs.cost * (1 + 1e-9)


def test_perfect_scaling_gives_only_a_lower_bound_of_the_ratio_and_a_constant_only_an_upper_bound():
    perfect = batch_law.fit(SIZES, 1000 / SIZES)
    assert (perfect.a, perfect.b, perfect.ratio) == (0, pytest.approx(1000), np.inf)
    assert perfect.ratio_interval[0] > SIZES.max() and perfect.ratio_interval[1] == np.inf
    constant = batch_law.fit(SIZES, np.full(5, 70.0))
    assert (constant.a, constant.b) == (pytest.approx(70), 0)
    assert constant.ratio_interval[0] == 0 and 0 < constant.ratio_interval[1] < SIZES.min()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_interval_scales_with_the_batch_sizes(scale):
    rng = np.random.default_rng(0)
    for y in (1000 / SIZES, 1 + 20 / SIZES, np.ones(5)):
        y = y * np.exp(0.05 * rng.standard_normal(5))
        law, scaled = batch_law.fit(SIZES, y), batch_law.fit(scale * SIZES, y / scale)
        assert scaled.ratio_interval == pytest.approx(tuple(scale * end for end in law.ratio_interval), rel=1e-6)


def test_the_order_of_the_points_does_not_matter():
    y = np.array([9000.0, 2000, 2000, 1500, 1100])
    law, reverse = batch_law.fit(SIZES, y), batch_law.fit(SIZES[::-1], y[::-1])
    assert law.ratio_interval == reverse.ratio_interval and law.ratio == reverse.ratio


def test_a_law_needs_two_batch_sizes_and_its_interval_three():
    assert batch_law.fit(np.array([4.0, 4.0]), np.array([10.0, 11.0])) is None
    assert batch_law.fit(np.array([1.0, 4.0]), np.array([10.0, 5.0])).ratio_interval is None


def test_a_power_law_is_a_line_in_logarithms():
    x, y = np.array([1.0, 4, 16, 64]), np.array([2.0, 3.1, 4.2, 7.0])
    law = power_law.fit(x, y)
    assert (law.exponent, np.log(law.coefficient)) == pytest.approx(tuple(np.polyfit(np.log(x), np.log(y), 1)))
    assert law.interval_from == "scatter" and law.interval[0] < law.exponent < law.interval[1]
    assert power_law.fit(x[:2], y[:2]).interval is None
    assert power_law.fit(x[:2], y[:2], np.full(2, 0.1)).interval is None  # two points have no scatter
    assert power_law.fit(x[:1], y[:1]) is None


def test_the_interval_of_a_power_law_is_the_larger_of_scatter_and_errors():
    x, on_a_line = np.array([1.0, 4, 16, 64]), np.array([2.0, 4, 8, 16])
    half_widths = np.array([0.1, 0.2, 0.2, 0.1])
    law = power_law.fit(x, on_a_line, half_widths)
    centred = np.log(x) - np.log(x).mean()
    half = np.sqrt(((centred * half_widths) ** 2).sum()) / (centred**2).sum()
    assert law.interval == pytest.approx((0.5 - half, 0.5 + half)) and law.interval_from == "scatter and points"
    scattered = on_a_line * np.array([1.5, 1, 1, 1.5])
    alone, both = power_law.fit(x, scattered), power_law.fit(x, scattered, half_widths)
    assert both.interval == alone.interval
