"""The optimizers in an ordinary optax loop, composed with optax's own transformations."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_specs import normal

from smallbatch import optim
from smallbatch.units import one_minus_b_from_half_life

PARAMS = {"w": jnp.asarray(normal(6, 4)), "b": jnp.asarray(normal(1, 4, seed=1))}
INPUTS, TARGETS = jnp.asarray(normal(32, 6, seed=2)), jnp.asarray(normal(32, 4, seed=3))
HALF_LIFE = {"t2_tokens": 1e6, "tokens_per_step": 512}
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        yield


def loss_of(params):
    return jnp.mean(jnp.square(INPUTS @ params["w"] + params["b"] - TARGETS))


def trained(optimizer, params=PARAMS, steps: int = 10):
    """Train by an ordinary optax loop, and assert that the second update compiles nothing."""

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init)(params)
    for _ in range(steps):
        params, state = step(params, state)
    assert step._cache_size() <= 1  # 0 in a traced call
    return params


def adam(learning_rate=0.01, **changes):
    return optim.adam(learning_rate, b1=0.9, **(HALF_LIFE | changes))


def assert_equal(found, expected, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), found, expected)
    assert float(loss_of(found)) < float(loss_of(PARAMS))


def keywords(name: str) -> dict:
    """Return the arguments that an optimizer requires beside the learning rate."""
    available = {
        "b1": {"t1_tokens": 5000, "tokens_per_step": 512},
        "b2": {"t2_tokens": 100_000, "tokens_per_step": 512},
        "embed_lr": {"embed_lr_ratio": 0.3},
    }
    read = optim.OPTIMIZERS[name].hyperparams
    return {argument: value for key in read for argument, value in available.get(key, {}).items()}


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimizer_accepts_a_number_a_schedule_and_a_traced_learning_rate(name):
    function = getattr(optim, name)
    fixed = trained(function(0.003, **keywords(name)))
    assert_equal(trained(function(optax.constant_schedule(0.003), **keywords(name))), fixed)
    assert_equal(jax.jit(lambda rate: trained(function(rate, **keywords(name))))(0.003), fixed)
    assert_equal(trained(optax.inject_hyperparams(function)(0.003, **keywords(name))), fixed, rtol=1e-5)


def test_schedule_reads_the_number_of_finished_updates():
    rates = [0.1, 0.01, 0.0]
    params = trained(optim.sgd(optax.piecewise_constant_schedule(0.1, {1: 0.1, 2: 0.0})), steps=3)
    expected = PARAMS
    for rate in rates:
        expected = jax.tree.map(lambda p, g, rate=rate: p - rate * g, expected, jax.grad(loss_of)(expected))
    assert_equal(params, expected)


def test_half_life_decay_rate_and_decay_are_the_same_number():
    one_minus_b2 = one_minus_b_from_half_life(1e6, 512)
    expected = trained(adam())
    for b2 in (1 - one_minus_b2, optim.Decay(one_minus_b2)):
        assert_equal(trained(optim.adam(0.01, b1=0.9, b2=b2)), expected)
    traced = jax.jit(lambda b2, tokens: (trained(optim.adam(0.01, b1=0.9, b2=b2)), trained(adam(t2_tokens=tokens))))
    for found in traced(optim.Decay(jnp.float32(one_minus_b2)), jnp.float32(1e6)):
        assert_equal(found, expected)


def test_parts_chain_with_optax():
    parts = optax.chain(
        optim.scale_by_adam(b1=0.9, **HALF_LIFE), optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(0.01)
    )
    assert_equal(trained(parts), trained(adam(weight_decay=0.1)))
    clipped = optax.chain(optax.clip_by_global_norm(0.1), adam(eps=0.1))
    theirs = optax.adam(0.01, b1=0.9, b2=1 - one_minus_b_from_half_life(1e6, 512), eps=0.1)
    assert_equal(trained(clipped), trained(optax.chain(optax.clip_by_global_norm(0.1), theirs)), rtol=1e-4)
    assert float(loss_of(trained(clipped))) != float(loss_of(trained(adam(eps=0.1))))


def test_masked_updates_only_the_unmasked_parameters():
    weights_only = optax.chain(
        optax.masked(adam(weight_decay=0.1), {"w": True, "b": False}),
        optax.masked(optax.set_to_zero(), {"w": False, "b": True}),
    )
    params = trained(weights_only)
    np.testing.assert_array_equal(params["b"], PARAMS["b"])
    assert float(loss_of(params)) < float(loss_of(PARAMS))


def test_inject_hyperparams_changes_them_without_recompiling():
    optimizer = optax.inject_hyperparams(optim.adam)(
        learning_rate=optax.linear_schedule(0.01, 0.0, 10), b1=0.9, t2_tokens=1_000_000, tokens_per_step=512
    )
    assert_equal(trained(optimizer), trained(adam(optax.linear_schedule(0.01, 0.0, 10))), rtol=1e-5)
    state = optimizer.init(PARAMS)
    update = jax.jit(optimizer.update)
    grads = jax.grad(loss_of)(PARAMS)
    first, _ = update(grads, state, PARAMS)
    state.hyperparams["eps"] = jnp.float32(1e3)
    second, _ = update(grads, state, PARAMS)
    assert update._cache_size() == 1 and float(jnp.abs(second["w"]).max()) < 0.01 * float(jnp.abs(first["w"]).max())


def test_multi_steps_accumulates_gradients():
    accumulated = trained(optax.MultiSteps(adam(), every_k_schedule=2).gradient_transformation(), steps=2)
    assert_equal(accumulated, trained(adam(), steps=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"b2 is None and t2_tokens is None\. Exactly one of them must be set\. Pass b2, the decay per step, or"),
        ({"b2": 0.99, "t2_tokens": 1e6}, r"b2 is 0\.99 and t2_tokens is 1000000\.0\. Exactly one of them must be set"),
        ({"t2_tokens": 1e6}, r"t2_tokens is 1000000\.0 and tokens_per_step is None\. .* Pass tokens_per_step"),
        ({"b2": 1.0}, r"b2 is 1\.0\. It must be at least 0 and below 1\. Pass t2_tokens for a half-life"),
    ],
)
def test_wrong_decay_rates_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        optim.adam(0.01, b1=0.9, **arguments)


def test_table_of_optimizers_imports_no_jax():
    code = (
        "import sys; from smallbatch.optim import OPTIMIZERS; from smallbatch.optim.schedules import lr_frac; "
        "assert not {'jax', 'optax'} & sys.modules.keys(); from smallbatch import optim; optim.adam; "
        "assert optim.markdown_table().count('\\n') == 2 + len(OPTIMIZERS); assert not hasattr(optim, 'adamax')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
