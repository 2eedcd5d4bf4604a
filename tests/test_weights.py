"""Stochastic rounding and the running average of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_specs import normal

from smallbatch import optim

KEY = jax.random.key(0)


def test_stochastic_rounding_is_unbiased_between_two_neighbours():
    x = normal(64, seed=1) * np.geomspace(1e-20, 1e20, 64, dtype=np.float32)
    draws = 20_000
    rounded = jax.vmap(lambda key: optim.stochastic_bfloat16(key, x))(jax.random.split(KEY, draws))
    rounded = np.asarray(rounded, np.float64)
    toward_zero = (x.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)
    away = ((x.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32).astype(np.float64)
    assert ((rounded == toward_zero) | (rounded == away)).all()
    gap = np.abs(away - toward_zero)
    share_up = np.abs(x - toward_zero) / gap
    five_sigma = 5 * np.sqrt(share_up * (1 - share_up) / draws)
    error = (rounded.mean(0) - x) / gap
    assert (np.abs(error) < five_sigma + 1e-9).all()
    nearest = np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float64)
    assert (np.abs((nearest - x) / gap) > five_sigma).mean() > 0.9  # nearest rounding would fail


@pytest.mark.parametrize("x", [0.0, -0.0, 1.0, -3.5, np.inf, -np.inf])
def test_exact_bfloat16_values_and_infinities_are_unchanged(x):
    values = optim.stochastic_bfloat16(KEY, jnp.full(1000, x, jnp.float32))
    assert (np.asarray(values, np.float32) == x).all()


def test_nan_stays_nan():
    assert np.isnan(np.asarray(optim.stochastic_bfloat16(KEY, jnp.full(1000, jnp.nan)), np.float32)).all()


def test_only_nearest_rounding_loses_small_updates():
    params, delta = {"w": jnp.ones(4096, jnp.bfloat16)}, {"w": jnp.full(4096, 2.0**-11)}

    @jax.jit
    def after_64(key):
        def body(i, p):
            return optim.apply_updates(p, delta, None if key is None else jax.random.fold_in(key, i))

        return jax.lax.fori_loop(0, 64, body, params)["w"].astype(jnp.float32)

    assert (np.asarray(after_64(None)) == 1.0).all()
    exact = 1 + 64 * 2.0**-11
    np.testing.assert_allclose(np.asarray(after_64(KEY)).mean(), exact, atol=1e-3)


def test_parameters_of_equal_shape_are_rounded_independently():
    params = {name: jnp.ones(1000, jnp.bfloat16) for name in "ab"}
    moved = optim.apply_updates(params, {name: jnp.full(1000, 2.0**-9) for name in "ab"}, KEY)
    assert 300 < np.sum(np.asarray(moved["a"] != moved["b"])) < 700


@pytest.mark.parametrize("one_minus_b", [0.1, 3.5e-5])
def test_average_of_weights_is_unbiased_from_the_first_update(one_minus_b):
    weights, steps = normal(50, 6) + 5, np.arange(1, 51)
    average = {"w": jnp.zeros(6)}
    for t, w in enumerate(weights, 1):
        average = optim.average(average, {"w": jnp.asarray(w)}, one_minus_b)
        shares = one_minus_b * (1 - one_minus_b) ** (t - steps[:t])
        expected = np.tensordot(shares / shares.sum(), weights[:t], 1)
        found = optim.averaged_weights(average, t, one_minus_b)["w"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
