"""The transfer rules against their closed forms and the numbers of the paper."""

import dataclasses
import math

import pytest

from smallbatch.config.keys import TRANSFER_RULES as RULES
from smallbatch.errors import UserError
from smallbatch.plan.transfer import Tuned, transfer
from smallbatch.units import half_life_from_one_minus_b

TUNED = Tuned(peak_lr=0.004, one_minus_b1=0.1, one_minus_b2=0.05, eps=1e-8)


@pytest.mark.parametrize("ratio", [1 / 512, 1 / 16, 1, 4])
def test_half_life_keeps_t2_in_tokens_and_b1_per_step(ratio):
    found = transfer("half_life", TUNED, ratio, lr_exponent=0.25)
    assert half_life_from_one_minus_b(found.one_minus_b2, 512 * ratio) == pytest.approx(
        half_life_from_one_minus_b(0.05, 512), rel=1e-12
    )
    assert found.one_minus_b1 == 0.1 and found.eps == 1e-8
    assert found.peak_lr == pytest.approx(0.004 * ratio**0.25)


def test_half_life_gives_the_betas_of_the_paper():
    # GPT-2 and Gemma of Marek et al. 2025: 0.95 at 512 is 0.9999 at 1; 0.95 at 16 is 0.997 at 1.
    b2 = lambda ratio: 1 - transfer("half_life", TUNED, ratio, 0.0).one_minus_b2
    assert b2(1 / 512) == pytest.approx(0.9999, abs=5e-7)
    assert b2(1 / 16) == pytest.approx(0.997, abs=3e-4)


def test_fixed_keeps_the_decays_per_step():
    found = transfer("fixed", TUNED, 1 / 16, lr_exponent=0.5)
    assert (found.one_minus_b1, found.one_minus_b2, found.eps) == (0.1, 0.05, 1e-8)
    assert found.peak_lr == pytest.approx(0.001)


def test_sqrt_and_half_life_agree_on_b2_where_the_batch_is_small():
    sqrt = transfer("sqrt", TUNED, 1 / 256)
    assert sqrt.peak_lr == pytest.approx(0.004 / 16) and sqrt.eps == pytest.approx(16e-8)
    assert sqrt.one_minus_b1 == pytest.approx(0.1 / 256)
    assert sqrt.one_minus_b2 == pytest.approx(0.05 / 256)
    # b^k and 1 - k(1-b) differ by -ln(b)/(1-b), here 2.6%.
    half_life = transfer("half_life", TUNED, 1 / 256, 0.0)
    assert half_life.one_minus_b2 / sqrt.one_minus_b2 == pytest.approx(-math.log(0.95) / 0.05, rel=1e-3)


def test_linear_scales_only_the_learning_rate():
    assert transfer("linear", TUNED, 8) == Tuned(0.032, 0.1, 0.05, 1e-8)


@pytest.mark.parametrize("rule", RULES)
def test_the_inverse_transfer_restores_the_values(rule):
    exponent = 0.2 if rule in ("half_life", "fixed") else None
    there = transfer(rule, TUNED, 1 / 64, exponent)
    assert there != TUNED
    back = transfer(rule, there, 64, exponent)
    for name in ("peak_lr", "one_minus_b1", "one_minus_b2", "eps"):
        assert getattr(back, name) == pytest.approx(getattr(TUNED, name), rel=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_absent_averages_stay_absent(rule):
    sgd = Tuned(0.1, None, None, 1e-8)
    found = transfer(rule, sgd, 4, 0.5 if rule in ("half_life", "fixed") else None)
    assert found.one_minus_b1 is None and found.one_minus_b2 is None


def test_sqrt_rejects_a_decay_below_zero():
    with pytest.raises(UserError, match=r"1 - b1 = 0\.1 x 16, above 1"):
        transfer("sqrt", TUNED, 16)


@pytest.mark.parametrize("rule", RULES)
def test_keep_tau_keeps_the_timescale_of_weight_decay_in_tokens(rule):
    exponent = 0.2 if rule in ("half_life", "fixed") else None
    tuned = dataclasses.replace(TUNED, weight_decay=0.1)
    tau_tokens = lambda t, ratio: ratio / (t.peak_lr * t.weight_decay)
    kept = transfer(rule, tuned, 1 / 16, exponent, keep_tau=True)
    assert tau_tokens(kept, 1 / 16) == pytest.approx(tau_tokens(tuned, 1))
    assert transfer(rule, tuned, 1 / 16, exponent).weight_decay == 0.1
