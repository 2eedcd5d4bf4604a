"""Curves: positions of records, smoothing, and interpolated crossings."""

import numpy as np
import pytest

from smallbatch.analysis.stats import curves
from smallbatch.analysis.stats.curves import Curve


def line(loss, end=10.0, x=None):
    x = np.arange(1.0, len(loss) + 1) if x is None else x
    return Curve(x, x, x, x, np.array(loss, float), dict.fromkeys(curves.AXES, end))


def records(losses, tokens_per_sec=100.0):
    return [
        {"step": 4 * i, "tokens": 400 * i, "flops": 4e6 * i, "loss_nats": loss, "tokens_per_sec": tokens_per_sec}
        for i, loss in enumerate(losses, 1)
    ]


def test_a_train_record_is_plotted_at_the_middle_of_its_interval():
    curve = curves.training_curve(records([3.0, 2.0, 1.5]))
    assert curve.tokens.tolist() == [200, 600, 1000] and curve.steps.tolist() == [2, 6, 10]
    assert curve.secs.tolist() == [2, 6, 10]
    assert curve.end == {"steps": 12, "tokens": 1200, "flops": 12e6, "secs": 12}


def test_a_validation_record_is_plotted_at_its_step_and_the_training_time():
    training = curves.training_curve(records([3.0, 2.0, 1.5]))
    curve = curves.validation_curve([{"step": 8, "tokens": 800, "flops": 8e6, "loss_nats": 2.0}], training)
    assert curve.steps.tolist() == [8] and curve.secs.tolist() == [8]


def test_smoothing_keeps_a_straight_line_and_halves_noise():
    n = 300
    straight = line(5 - 0.01 * np.arange(n))
    assert curves.smoothed(straight).loss_nats == pytest.approx(straight.loss_nats, abs=1e-12)
    noise = np.random.default_rng(0).standard_normal(n)
    assert np.std(curves.smoothed(line(noise)).loss_nats) < 0.5 * np.std(noise)
    assert curves.smoothed(line([3, 1, 2])).loss_nats.tolist() == [3, 1, 2]


def test_smoothing_keeps_the_records_before_a_divergence():
    losses = np.linspace(4, 3, 200)
    losses[150:] = np.nan
    found = curves.smoothed(line(losses)).loss_nats
    assert found[:140] == pytest.approx(losses[:140]) and np.isnan(found[150:]).all()


def test_the_first_crossing_is_interpolated():
    curve = line([4, 3, 2, 3, 1])
    assert curves.cost_to_reach(curve, "steps", 2.5) == pytest.approx(2.5)
    assert curves.cost_to_reach(curve, "steps", 2.0) == 3.0
    assert curves.cost_to_reach(curve, "steps", 0.5) == np.inf
    assert curves.cost_to_reach(curve, "steps", 9.0) == 1.0


def test_a_budget_beyond_the_end_gives_the_final_loss_and_none_for_a_diverged_run():
    curve = line([4, 3, 2], end=3.5)
    budgets = np.array([0.5, 1.5, 3.25, 5.0])
    assert curves.loss_at(curve, "steps", budgets)[1:].tolist() == [3.5, 2.0, 2.0]
    assert np.isnan(curves.loss_at(curve, "steps", budgets)[0])
    assert curves.loss_at(curve, "steps", budgets, diverged=True)[3] == np.inf
