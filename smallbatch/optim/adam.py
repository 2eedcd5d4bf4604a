"""Adam and AdamW with their decays given as complements, so that long half-lives in tokens stay exact in float32."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class AdamState(NamedTuple):
    """Averages are float32 whatever the dtype of the parameters."""

    count: jax.Array  # shape=(), dtype=int32: finished updates
    mu: optax.Updates
    nu: optax.Updates


def bias_correction(count: jax.Array, complement: jax.Array | float) -> jax.Array:
    """Return 1 - b^count for b = 1 - complement, without forming b: -expm1(count log1p(-complement))."""
    return -jnp.expm1(count.astype(jnp.float32) * jnp.log1p(-jnp.asarray(complement, jnp.float32)))


def adam(
    learning_rate: Callable[[jax.Array], jax.Array],
    *,
    b1_complement: jax.Array | float,
    b2_complement: jax.Array | float,
    eps: jax.Array | float = 1e-8,
    weight_decay: jax.Array | float = 0.0,
) -> optax.GradientTransformation:
    """Return AdamW (Kingma & Ba 2015, arXiv 1412.6980; Loshchilov & Hutter 2019, arXiv 1711.05101).

    mu += (1-b1)(g - mu); nu += (1-b2)(g^2 - nu); p -= lr (mu/(1-b1^t) / (sqrt(nu/(1-b2^t)) + eps) + wd p).
    Pass `1 - b = -expm1(-ln2 * batch * context / half_life_tokens)`, computed in float64 by
    `smallbatch.units.complement_from_half_life`. All hyperparameters may be traced.

    Args:
        learning_rate: maps the number of finished updates to the learning rate.
        b1_complement, b2_complement: 1 - b, in (0, 1].
        weight_decay: decoupled, times the learning rate.
    """

    def init(params: optax.Params) -> AdamState:
        zeros = lambda p: jnp.zeros(p.shape, jnp.float32)
        return AdamState(jnp.zeros((), jnp.int32), jax.tree.map(zeros, params), jax.tree.map(zeros, params))

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None):
        assert isinstance(state, AdamState)
        if params is None:
            raise ValueError("adam needs the parameters: call update(grads, state, params)")
        lr = learning_rate(state.count)
        count = state.count + 1
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), updates)
        mu = jax.tree.map(lambda m, g: m + b1_complement * (g - m), state.mu, grads)
        nu = jax.tree.map(lambda n, g: n + b2_complement * (g * g - n), state.nu, grads)
        mu_scale = 1 / bias_correction(count, b1_complement)
        nu_scale = 1 / bias_correction(count, b2_complement)

        def delta(m, n, p):
            return -lr * (m * mu_scale / (jnp.sqrt(n * nu_scale) + eps) + weight_decay * p.astype(jnp.float32))

        return jax.tree.map(delta, mu, nu, params), AdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)
