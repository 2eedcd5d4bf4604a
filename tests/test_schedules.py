"""Learning-rate schedules against optax, against closed forms, and across batch sizes."""

import jax
import numpy as np
import optax
import pytest
from model_specs import hyperparams

from smallbatch.optim import learning_rate

rate = jax.jit(jax.vmap(learning_rate, in_axes=(None, None, 0)), static_argnums=0)
PEAK, FINAL, WARMUP, TOTAL = 0.02, 0.1, 30, 200
COUNTS = np.arange(TOTAL + 20, dtype=np.int32)
MIDDLE = 0.5  # of an update: the schedule is evaluated at its midpoint
THEIRS = {
    "cosine": lambda: optax.warmup_cosine_decay_schedule(0.0, PEAK, WARMUP, TOTAL, PEAK * FINAL),
    "linear": lambda: optax.join_schedules(
        [
            optax.linear_schedule(0.0, PEAK, WARMUP),
            optax.linear_schedule(PEAK, PEAK * FINAL, TOTAL - WARMUP),
        ],
        [WARMUP],
    ),
    "constant": lambda: optax.warmup_constant_schedule(0.0, PEAK, WARMUP),
}


def ours(schedule: str, counts=COUNTS, **changes) -> np.ndarray:
    numbers = {"peak_lr": PEAK, "final_lr_frac": FINAL, "warmup_steps": WARMUP, "total_steps": TOTAL}
    return np.asarray(rate(schedule, hyperparams(**(numbers | changes)), counts))


@pytest.mark.parametrize("schedule", THEIRS)
def test_rates_equal_optax_half_an_update_later(schedule):
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        theirs = jax.jit(jax.vmap(THEIRS[schedule]()))(COUNTS + MIDDLE)
        from_0 = jax.jit(jax.vmap(THEIRS[schedule]()))(COUNTS)
    np.testing.assert_allclose(ours(schedule), theirs, rtol=2e-6, atol=1e-9)
    assert from_0[0] == 0  # the first update of optax's warm-up has no effect
    assert ours(schedule)[0] == np.float32(PEAK * MIDDLE / WARMUP)


@pytest.mark.parametrize("warmup", [0.25, 0.5, 0.9])
def test_warmup_shorter_than_an_update_has_a_rate_above_0(warmup):
    rates = ours("cosine", warmup_steps=warmup, total_steps=10)
    assert rates[0] > 0.5 * PEAK and (rates[:10] > 0).all()


@pytest.mark.parametrize("schedule", [*THEIRS, "wsd_linear", "wsd_sqrt"])
def test_learning_rate_per_token_is_the_same_at_every_batch_size(schedule):
    def mean_rate(steps: int, offset: float = 0.0) -> float:
        numbers = {"warmup_steps": steps * 0.05, "total_steps": steps, "decay_steps": steps * 0.2}
        counts = np.arange(steps, dtype=np.int32)
        return float(ours(schedule, counts, step_offset=offset, final_lr_frac=0.0, **numbers).mean(dtype=np.float64))

    exact = mean_rate(100_000)
    for steps in (16, 64, 256):
        assert mean_rate(steps) == pytest.approx(exact, rel=2 / steps**1.5)
    assert abs(mean_rate(16, -MIDDLE) / exact - 1) > 2 * abs(mean_rate(16) / exact - 1)  # the start of each update


def test_warmup_of_a_fraction_of_a_step_is_not_rounded():
    steps = COUNTS + MIDDLE
    x = np.clip((steps - 2.5) / (TOTAL - 2.5), 0, 1)
    cosine = PEAK * (FINAL + (1 - FINAL) * 0.5 * (1 + np.cos(np.pi * x)))
    expected = np.where(steps < 2.5, PEAK * steps / 2.5, cosine)
    np.testing.assert_allclose(ours("cosine", warmup_steps=2.5), expected, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", THEIRS)
def test_first_update_without_warmup_has_nearly_the_peak_rate(schedule):
    rates = ours(schedule, warmup_steps=0.0)
    assert 0.997 * PEAK < rates[0] <= np.float32(PEAK) and np.isfinite(rates).all()


@pytest.mark.parametrize("schedule", THEIRS)
def test_rate_at_a_token_is_the_same_at_every_batch_size(schedule):
    tokens, warmup, budget = np.arange(40.5, 4096, 81), 300, 4096

    def at_tokens(tokens_per_step: int) -> np.ndarray:
        counts = (tokens // tokens_per_step).astype(np.int32)
        return ours(schedule, counts, warmup_steps=warmup / tokens_per_step, total_steps=budget / tokens_per_step)

    assert len(np.unique(at_tokens(1))) > 4
    for tokens_per_step in (3, 9, 27, 81):  # these tokens are the midpoints of updates
        np.testing.assert_allclose(at_tokens(tokens_per_step), at_tokens(1), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("schedule", "shape"), [("wsd_linear", lambda y: y), ("wsd_sqrt", np.sqrt)])
def test_wsd_is_constant_and_then_decays(schedule, shape):
    rates = ours(schedule, decay_steps=50.0)
    np.testing.assert_allclose(rates[:WARMUP], PEAK * (COUNTS[:WARMUP] + MIDDLE) / WARMUP, rtol=2e-6)
    np.testing.assert_allclose(rates[WARMUP : TOTAL - 50], PEAK, rtol=2e-6)
    y = np.clip((COUNTS[TOTAL - 50 :] + MIDDLE - (TOTAL - 50)) / 50, 0, 1)
    np.testing.assert_allclose(rates[TOTAL - 50 :], PEAK * (1 - (1 - FINAL) * shape(y)), rtol=2e-6)


def test_unknown_schedule_raises():
    with pytest.raises(ValueError, match=r"Unknown schedule 'wds'\. Use one of cosine, linear"):
        learning_rate("wds", hyperparams(), np.int32(0))
