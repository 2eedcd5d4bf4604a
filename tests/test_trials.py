"""The exact formulas of random search match enumeration of all subsets."""

from itertools import combinations

import numpy as np
import pytest

from smallbatch.analysis import trials

LOSSES = np.array([3.1, 2.5, 2.5, 4.0, 2.9, 3.3, 2.7])


@pytest.mark.parametrize("n", range(1, 8))
def test_the_expected_best_is_the_mean_over_all_subsets(n):
    brute = np.mean([min(chosen) for chosen in combinations(LOSSES, n)])
    assert trials.expected_best(LOSSES, n) == pytest.approx(brute, rel=1e-12)


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("quantile", [0.05, 0.5, 0.95])
def test_the_quantiles_match_all_subsets(n, quantile):
    best = np.sort([min(chosen) for chosen in combinations(LOSSES, n)])
    brute = best[int(np.ceil(quantile * len(best) - 1e-9)) - 1]
    assert trials.quantile_best(LOSSES, n, quantile) == brute


def test_the_expected_best_is_infinite_while_all_trials_may_diverge():
    losses = np.array([2.0, np.inf, 3.0, np.inf])
    assert trials.expected_best(losses, 1) == np.inf == trials.expected_best(losses, 2)
    subsets = [min(chosen) for chosen in combinations(losses, 3)]
    assert trials.expected_best(losses, 3) == pytest.approx(np.mean(subsets))
    assert trials.expected_best(losses, 4) == 2.0


def test_large_grids_do_not_overflow():
    losses = np.linspace(2, 3, 5000)
    assert trials.expected_best(losses, 1) == pytest.approx(2.5)
    assert 2.0 < trials.expected_best(losses, 100) < 2.02
