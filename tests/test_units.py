"""Units: half-lives against their definition and against exact arithmetic, budgets against counting."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallbatch import units
from smallbatch.errors import UserError


def test_the_weight_of_an_old_value_halves_after_one_half_life():
    one_minus_b = units.one_minus_b_from_half_life(half_life_tokens=4096, tokens_per_step=64)
    average = 1.0
    for _ in range(4096 // 64):  # one half-life of zeros
        average += one_minus_b * (0.0 - average)
    assert average == pytest.approx(0.5, rel=1e-13)


def test_decays_agree_with_the_paper():
    """Marek et al. 2025, section 2: 30M model, context 512, second-moment half-life 10M tokens."""
    for batch_size, b2 in {1: 0.999965, 16: 0.99943, 256: 0.9910, 1024: 0.9643, 4096: 0.8647}.items():
        written = len(str(b2)) - 2
        assert round(1 - units.one_minus_b_from_half_life(10e6, 512 * batch_size), written) == b2


def test_a_decay_at_another_batch_size_is_a_power_of_itself():
    """Equation 2 of the paper, b2* = b2^(B*/B), from 0.95 at batch 512 down to batch 1."""
    half_life_tokens = units.half_life_from_one_minus_b(1 - 0.95, 512 * 1024)
    assert 1 - units.one_minus_b_from_half_life(half_life_tokens, 1024) == pytest.approx(0.95 ** (1 / 512), abs=1e-15)


@given(st.floats(1, 1e15), st.floats(1e-12, 40))
def test_half_lives_are_restored_by_the_round_trip(half_life_tokens, half_lives_per_step):
    tokens_per_step = half_life_tokens * half_lives_per_step
    one_minus_b = units.one_minus_b_from_half_life(half_life_tokens, tokens_per_step)
    # 1 - b is rounded at 1e-16, which costs digits of b once b itself is small
    tolerance = 1e-12 + 1e-15 * 2**half_lives_per_step
    assert units.half_life_from_one_minus_b(one_minus_b, tokens_per_step) == pytest.approx(
        half_life_tokens, rel=tolerance
    )


def test_a_small_one_minus_b_keeps_its_digits():
    """-expm1(-x) against its series in exact fractions, where 1 - 2**-x has lost 9 of its 16 digits."""
    x = Fraction(units.LN2) * 16 / 10**10
    series = x - x**2 / 2 + x**3 / 6
    one_minus_b = units.one_minus_b_from_half_life(1e10, 16)
    assert abs(Fraction(one_minus_b) / series - 1) < 1e-15
    assert abs((1 - 2 ** (-16 / 1e10)) / one_minus_b - 1) > 1e-9  # computing 1 - 2**-x directly is less exact


def test_a_decay_of_zero_has_no_half_life():
    assert units.half_life_from_one_minus_b(1.0, 64) == 0.0


@pytest.mark.parametrize("wrong", [0, -1, math.inf, math.nan])
def test_half_lives_and_tokens_per_step_must_be_positive(wrong):
    with pytest.raises(UserError, match="the half-life is"):
        units.one_minus_b_from_half_life(wrong, 64)
    with pytest.raises(UserError, match="the tokens per step are"):
        units.one_minus_b_from_half_life(64, wrong)


@pytest.mark.parametrize("wrong", [0, -0.1, 1.1, math.nan])
def test_one_minus_b_outside_its_range_is_rejected(wrong):
    with pytest.raises(UserError, match="a decay rate b is in"):
        units.half_life_from_one_minus_b(wrong, 64)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_budget_is_a_whole_number_of_steps(steps, tokens_per_step):
    assert units.steps_from_tokens(steps * tokens_per_step, tokens_per_step) == steps


@given(st.integers(2, 10**6), st.integers(0, 10**9))
def test_another_budget_is_an_error_that_suggests_the_nearest_ones(tokens_per_step, budget_tokens):
    if budget_tokens % tokens_per_step == 0 and budget_tokens:
        budget_tokens += 1
    with pytest.raises(UserError) as raised:
        units.steps_from_tokens(budget_tokens, tokens_per_step)
    named = [int(n.replace(",", "")) for n in str(raised.value).partition("use ")[2].split(" or ")]
    assert named[1] - named[0] == tokens_per_step and named[1] > budget_tokens
    assert all(units.steps_from_tokens(n, tokens_per_step) for n in named)


def test_bits_per_byte_of_a_fair_coin_per_byte_is_one():
    assert units.bits_per_byte(1000 * math.log(2), 1000) == pytest.approx(1, rel=1e-15)


@pytest.mark.parametrize("value", [0.0, 1e-37, -1e-37, 3.4e38, -3.4e38])
def test_normal_numbers_and_0_fit_float32(value):
    assert units.float32_problem(value) is None


@pytest.mark.parametrize("value", [1e39, -1e39, 1e-38, -1e-40, 1e-300])
def test_numbers_that_would_become_infinite_or_0_do_not_fit_float32(value):
    assert units.float32_problem(value)
