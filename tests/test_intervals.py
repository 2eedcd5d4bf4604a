"""Intervals have their stated coverage, over 200 grids with known true values each."""

import dataclasses

import numpy as np
import pytest
from grids import Basin, basin_cells, coverage, table_of

from smallbatch.analysis import gaps, learning_rates, robustness
from smallbatch.analysis.analyze import analyze
from smallbatch.analysis.read.run_table import RunTable, joined
from smallbatch.analysis.stats import batch_law, intervals
from smallbatch.analysis.stats.equal_flops import choose
from smallbatch.analysis.stats.intervals import Noise

REPEATS = 200
LOG2_LRS = range(-12, -4)


def grids(seeds: int, noise: float, batch_sizes=(4,), **truth):
    """Yield (basin, run table) of REPEATS grids over log-normal noise."""
    rng = np.random.default_rng(1)
    for _ in range(REPEATS):
        basin = Basin(noise=noise, lr_1=0.002 * 2 ** rng.uniform(-0.5, 0.5), **truth)
        yield basin, table_of(basin_cells(basin, batch_sizes, LOG2_LRS, range(seeds), rng))


def within(interval, truth: float) -> bool:
    assert interval is not None
    return interval[0] <= truth <= interval[1]


def test_the_t_interval_equals_the_textbook():
    # 2.92 is t of 2 degrees of freedom at 95%, from any table
    assert intervals.student(5.0, 3, Noise(0.3, 2)) == pytest.approx(
        (5 - 2.92 * 0.3 / 3**0.5, 5 + 2.92 * 0.3 / 3**0.5), abs=1e-3
    )
    assert intervals.student(5.0, 1, Noise(np.nan, 0)) is None
    assert intervals.student(np.inf, 3, Noise(0.3, 2)) is None


def test_noise_is_pooled_over_the_better_half():
    loss = np.array([[1.0, 1.2], [1.1, 1.1], [2.0, 4.0], [3.0, np.nan], [9.0, np.inf]])
    # three cells have two finite seeds; the better two have squares 0.02 and 0, and a degree of freedom each
    assert intervals.pooled_noise(loss) == Noise(pytest.approx(0.1), 2)
    assert intervals.pooled_noise(loss[:, :1]).df == 0


def test_resampling_does_not_depend_on_the_order_of_the_numbers():
    means, seeds, noise = np.array([3.0, 2.0, 2.0, np.inf]), np.array([2, 3, 1, 2]), Noise(0.1, 4)
    draws = intervals.draw_means(means, seeds, noise)
    order = np.array([2, 0, 3, 1])
    assert (intervals.draw_means(means[order], seeds[order], noise) == draws[:, order]).all()
    assert (intervals.draw_means(means + 1e-9, seeds, noise)[:, 0] != draws[:, 0]).any()


def test_intervals_do_not_depend_on_names_or_on_the_order_of_runs():
    cells = basin_cells(Basin(noise=0.002), [4, 16, 64], LOG2_LRS, range(3), np.random.default_rng(0))
    numbers = []
    for arm, own in (("adam", cells), ("another.csv", cells[::-1])):
        analysis = analyze(table_of(own, setting=arm, arm=arm))
        names = ("equal_flops", "robustness", "learning_rates", "learning_rate_laws")
        rows = [row for name in names for row in analysis.rows(name)]
        numbers.append([{k: v for k, v in row.items() if k not in ("setting", "arm")} for row in rows])
    assert numbers[0] == numbers[1]


def test_cells_within_the_noise_of_the_best_are_candidates():
    means, seeds = np.array([2.3, 2.01, 2.0, np.inf]), np.array([3, 3, 3, 3])
    assert intervals.maybe_best(means, seeds, Noise(0.001, 8)).tolist() == [False, False, True, False]
    assert intervals.maybe_best(means, seeds, Noise(0.01, 8)).tolist() == [False, True, True, False]


def test_a_bootstrap_over_three_seeds_misses_the_lowest_mean_in_a_third_of_cases_and_ours_does_not():
    rng, hits, usual = np.random.default_rng(0), 0, 0
    for basin, table in grids(seeds=3, noise=0.003):
        (group,) = table.groups
        truth = min(basin.loss(4, 2.0**k) for k in LOG2_LRS)
        hits += within(choose(group).lowest_mean_interval, truth)
        resampled = group.loss_PxS[:, rng.integers(0, 3, (500, 3))].mean(2).min(0)
        usual += within(intervals.central(resampled), truth)
    assert usual < 0.75 * REPEATS
    assert coverage(hits, REPEATS)


@pytest.mark.parametrize(("seeds", "noise"), [(2, 0.005), (4, 0.001)])
def test_the_interval_of_the_held_out_loss_has_its_coverage(seeds, noise):
    hits, held_out = 0, 0
    for basin, table in grids(seeds, noise):
        (group,) = table.groups
        choice = choose(group)
        held_out += choice.held_out
        hits += within(choice.interval, basin.loss(4, dict(group.points[choice.index])["optimizer.peak_lr"]))
    assert held_out == REPEATS
    assert coverage(hits, REPEATS)


def test_without_held_out_seeds_the_loss_of_the_selected_cell_is_biased():
    flattered, honest = [], []
    for basin, table in grids(seeds=2, noise=0.02, curvature=0.002):
        (group,) = table.groups
        choice = choose(group)
        truth = basin.loss(4, dict(group.points[choice.index])["optimizer.peak_lr"])
        flattered.append(np.nanmin(group.loss_PxS) - truth)
        honest.append(choice.loss_nats - truth)
    error = np.std(honest) / REPEATS**0.5
    assert abs(np.mean(honest)) < 3.3 * error
    assert np.mean(flattered) < -20 * error


def test_the_interval_of_the_gap_between_methods_has_its_coverage():
    hits = 0
    pairs = zip(grids(3, 0.004), grids(3, 0.004, floor_nats=2.3), strict=True)
    for (a, table_a), (b, table_b) in pairs:
        sgd = RunTable(tuple(dataclasses.replace(run, arm="sgd") for run in table_b.runs))
        (row,) = gaps.gaps(joined([table_a, sgd]))
        chosen = [choose(table.groups[0]) for table in (table_a, table_b)]
        points = [dict(t.groups[0].points[c.index]) for t, c in zip((table_a, table_b), chosen, strict=True)]
        truth = b.loss(4, points[1]["optimizer.peak_lr"]) - a.loss(4, points[0]["optimizer.peak_lr"])
        hits += within((row["gap_nats_low"], row["gap_nats_high"]), truth)
    assert coverage(hits, REPEATS)


def test_the_interval_of_the_width_of_a_basin_has_its_coverage():
    hits = 0
    for basin, table in grids(seeds=3, noise=0.002, curvature=0.01):
        (group,) = table.groups
        found = robustness.profile(group, "optimizer.peak_lr")
        noiseless = np.array([basin.loss(4, value) for value in found.values])
        truth, _ = robustness.width_log2(found.log2_multipliers, noiseless, 0.02)
        hits += within(robustness.width_interval(group, found, 0.02), truth)
    assert coverage(hits, REPEATS)


def test_the_interval_of_the_exponent_of_the_learning_rate_has_its_coverage():
    hits = 0
    for basin, table in grids(seeds=3, noise=0.003, batch_sizes=(1, 4, 16, 64)):
        _, (law,) = learning_rates.learning_rates(table)
        assert law["interval_from"] == "scatter and points" and law["batch_sizes"] == 4
        hits += within((law["exponent_low"], law["exponent_high"]), basin.exponent)
    assert coverage(hits, REPEATS)


@pytest.mark.parametrize(("sizes", "seeds"), [((1, 4, 16, 64, 256), 3), ((1, 2, 4, 8, 16, 32, 64, 128, 256), 1)])
def test_the_interval_of_the_critical_ratio_has_its_coverage(sizes, seeds):
    rng, hits = np.random.default_rng(2), 0
    batch_size = np.repeat(np.array(sizes, float), seeds)
    for _ in range(REPEATS):
        a, b = 100.0, 100.0 * rng.uniform(10, 60)
        steps = (a + b / batch_size) * np.exp(0.05 * rng.standard_normal(len(batch_size)))
        hits += within(batch_law.fit(batch_size, steps).ratio_interval, b / a)
    assert coverage(hits, REPEATS)
