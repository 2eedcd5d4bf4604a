"""The optimizers against float64 numpy and optax; half-lives, state, precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_specs import hypers, normal, tiny

from smallbatch import optim
from smallbatch.model import gpt
from smallbatch.specs import OptimizerSpec
from smallbatch.units import complement_from_half_life

STEPS = 200
GRADS = normal(STEPS, 6) * np.array([1e-4, 0.01, 1, 1, 30, 1e3], np.float32)
START = normal(6, seed=1)
LR, EPS, DECAY = 0.01, 1e-8, 0.1


def numpy_adam(c1: float, c2: float):
    """AdamW in float64, with decays in the complement form or not: float64 does not mind."""
    p, mu, nu = START.astype(np.float64), np.zeros(6), np.zeros(6)
    for t, g in enumerate(GRADS.astype(np.float64), 1):
        mu = (1 - c1) * mu + c1 * g
        nu = (1 - c2) * nu + c2 * g * g
        mu_hat, nu_hat = mu / (1 - (1 - c1) ** t), nu / (1 - (1 - c2) ** t)
        p = p - LR * (mu_hat / (np.sqrt(nu_hat) + EPS) + DECAY * p)
    return p, mu, nu


@jax.jit
def run_adam(c1, c2):
    adam = optim.adam(lambda _: LR, b1_complement=c1, b2_complement=c2, eps=EPS, weight_decay=DECAY)

    def body(carry, g):
        p, state = carry
        delta, state = adam.update(g, state, p)
        return (p + delta, state), None

    (p, state), _ = jax.lax.scan(body, (jnp.asarray(START), adam.init(START)), GRADS)
    return p, state.mu, state.nu


HALF_LIVES = [(16, 1e7), (512, 1e7), (512, 1e5), (65_536, 1e7)]  # tokens per step, half-life in tokens


@pytest.mark.parametrize(("tokens_per_step", "t2_tokens"), HALF_LIVES)
def test_adam_equals_float64_adam_after_200_steps_at_every_half_life(tokens_per_step, t2_tokens):
    c1, c2 = 0.1, complement_from_half_life(t2_tokens, tokens_per_step)
    for ours, exact in zip(run_adam(np.float32(c1), np.float32(c2)), numpy_adam(c1, c2), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=5e-6, atol=1e-7 * np.abs(exact).max())


def test_a_decay_carried_as_b_itself_would_fail_that():
    tokens_per_step, t2_tokens = HALF_LIVES[0]
    exact = complement_from_half_life(t2_tokens, tokens_per_step)
    naive = float(np.float32(1) - np.float32(1 - exact))
    assert abs(naive / exact - 1) > 0.01
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(numpy_adam(0.1, naive)[2], numpy_adam(0.1, exact)[2], rtol=1e-3)


def test_adam_equals_optax_adamw_at_ordinary_betas():
    adamw = optax.adamw(LR, b1=0.9, b2=0.99, eps=EPS, weight_decay=DECAY)

    @jax.jit
    def run():
        def body(carry, g):
            delta, state = adamw.update(g, carry[1], carry[0])
            return (carry[0] + delta, state), None

        return jax.lax.scan(body, (jnp.asarray(START), adamw.init(jnp.asarray(START))), GRADS)[0][0]

    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        theirs = run()
    np.testing.assert_allclose(run_adam(np.float32(0.1), np.float32(0.01))[0], theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("tokens_per_step", [16, 512, 4096])
def test_the_weight_of_a_gradient_in_nu_halves_after_one_half_life(tokens_per_step):
    t2_tokens = 10 * 4096
    c2 = np.float32(complement_from_half_life(t2_tokens, tokens_per_step))
    adam = optim.adam(lambda _: 0.0, b1_complement=0.1, b2_complement=c2)

    @jax.jit
    def nu_after(steps):
        update = lambda g, state: adam.update({"w": g}, state, {"w": jnp.zeros(1)})[1]
        state = update(jnp.full(1, 3.0), adam.init({"w": jnp.zeros(1)}))
        return jax.lax.fori_loop(0, steps, lambda _, state: update(jnp.zeros(1), state), state).nu["w"][0]

    np.testing.assert_allclose(nu_after(t2_tokens // tokens_per_step) / nu_after(0), 0.5, rtol=5e-5)


def test_sgd_equals_float64_sgd_with_decoupled_weight_decay():
    sgd = optim.sgd(lambda count: 0.001 / (1 + count.astype(jnp.float32)), weight_decay=DECAY)
    p, exact, state = jnp.asarray(START), START.astype(np.float64), sgd.init(START)
    update = jax.jit(sgd.update)
    for t, g in enumerate(GRADS[:20]):
        delta, state = update(g, state, p)
        p = p + delta
        exact = exact - 0.001 / (1 + t) * (g + DECAY * exact)
    np.testing.assert_allclose(p, exact, rtol=1e-5, atol=1e-6)
    assert state.count == 20


def abstract_state(name: str, param_dtype: str):
    params = gpt.abstract_params(tiny(param_dtype=param_dtype))
    state = jax.eval_shape(optim.build(OptimizerSpec(name, "cosine"), hypers()).init, params)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return state, size(state), sum(x.size for x in params.values())


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_sgd_keeps_one_counter_and_adam_two_float32_averages_and_a_counter(param_dtype):
    state, state_bytes, params = abstract_state("sgd", param_dtype)
    assert state_bytes == 4 and state.count.dtype == jnp.int32
    state, state_bytes, params = abstract_state("adam", param_dtype)
    assert state_bytes == 2 * 4 * params + 4 and state.count.dtype == jnp.int32
    assert {x.dtype.name for x in jax.tree.leaves((state.mu, state.nu))} == {"float32"}


def test_averages_of_bfloat16_gradients_do_not_stand_still():
    c2 = np.float32(complement_from_half_life(1e7, 512))  # far below bfloat16's 2^-8
    adam = optim.adam(lambda _: 0.0, b1_complement=0.1, b2_complement=c2)
    p = {"w": jnp.ones(1, jnp.bfloat16)}

    @jax.jit
    def nu_after(steps):
        body = lambda _, state: adam.update({"w": jnp.ones(1, jnp.bfloat16)}, state, p)[1]
        return jax.lax.fori_loop(0, steps, body, adam.init(p)).nu["w"][0]

    np.testing.assert_allclose(nu_after(1000), -np.expm1(1000 * np.log1p(-float(c2))), rtol=1e-4)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_second_update_and_a_second_learning_rate_compile_nothing(name):
    @jax.jit
    def update(state, params, hypers):
        return optim.build(OptimizerSpec(name, "cosine"), hypers).update(params, state, params)

    params = {"w": jnp.asarray(START)}
    state = jax.jit(partial(lambda p: optim.build(OptimizerSpec(name, "cosine"), hypers()).init(p)))(params)
    first, state = update(state, params, hypers(peak_lr=0.1))
    update(state, params, hypers(peak_lr=0.1))
    second, _ = update(state, params, hypers(peak_lr=0.3, b2_complement=1e-6, eps=1e-3, warmup_steps=5.0))
    assert (np.asarray(first["w"]) != np.asarray(second["w"])).any()
    assert update._cache_size() == 1


def test_an_unknown_optimizer_raises():
    with pytest.raises(ValueError, match="adamax"):
        optim.build(OptimizerSpec("adamax", "cosine"), hypers())
