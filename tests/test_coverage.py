"""On simulated data, every interval of the report contains the true value at least as often as stated.

These are a sample of the cases of coverage_cases.py, with few repetitions; `python tests/coverage_cases.py 1000` runs
them all.
"""

import pytest
from coverage_cases import SHAPES, STEPS_LOG2, batch_laws, best_rates, exponents, power_laws, widths
from grids import coverage

BASINS = [("parabola", "factor sqrt 2", 3, True), ("right 1.25x", "factor 2", 3, False),
          ("right 2x", "factor sqrt 2", 7, False), ("exponential right", "factor 2", 7, True),
          ("exponential right", "factor sqrt 2", 3, False), ("flat left", "factor 2", 3, False)]  # fmt: skip


def held(found) -> bool:
    hits = list(found)
    return coverage(sum(hits), len(hits))


@pytest.mark.parametrize(("shape", "grid", "seeds", "paired"), BASINS)
def test_the_interval_of_the_best_learning_rate_has_its_coverage_for_every_shape(shape, grid, seeds, paired):
    assert held(best_rates(30, shape, STEPS_LOG2[grid], seeds, 0.01, paired))


@pytest.mark.parametrize(("shape", "grid", "seeds", "paired"), BASINS)
def test_the_interval_of_the_width_has_its_coverage_for_every_shape(shape, grid, seeds, paired):
    assert held(widths(30, shape, STEPS_LOG2[grid], seeds, 0.002, paired))


@pytest.mark.parametrize(("shape", "seeds", "scatter"), [("right 2x", 1, 0.0), ("exponential right", 3, 0.5)])
def test_the_interval_of_the_exponent_has_its_coverage_for_every_shape(shape, seeds, scatter):
    assert held(exponents(20, shape, 0.5, seeds, 0.005, False, scatter))


@pytest.mark.parametrize("part", ["both", "a", "b"])
@pytest.mark.parametrize(("sizes", "seeds", "sd", "shared"), [(3, 3, 0.05, 0.0), (5, 1, 0.05, 0.0), (5, 3, 0.02, 0.05)])
def test_the_interval_of_the_ratio_of_a_batch_law_has_its_coverage(part, sizes, seeds, sd, shared):
    assert held(batch_laws(100, sizes, seeds, part, sd, shared))


@pytest.mark.parametrize(("scatter", "error"), [(0.2, 0.0), (0.2, 0.05), (0.05, 0.2), (0.0, 0.1)])
@pytest.mark.parametrize("points", [3, 4, 7])
def test_the_interval_of_a_power_law_has_its_coverage(points, scatter, error):
    assert held(power_laws(400, points, scatter, error))


def test_the_cases_include_the_documented_ones():
    assert set(SHAPES) >= {"parabola", "right 1.25x", "right 2x", "exponential right", "flat left"}
    assert STEPS_LOG2 == {"factor 2": 1.0, "factor sqrt 2": 0.5}
