"""Adam and AdamW with their decays given as one_minus_bs, so that long half-lives in tokens stay exact in float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smallbatch.optim.descent import (
    LearningRate,
    Scalar,
    average,
    b1_age,
    bias_correction,
    descent,
    no_updates,
    zeros,
)


class AdamState(NamedTuple):
    """8 bytes a parameter."""

    count: jax.Array  # shape=(), dtype=int32: finished updates
    mu: optax.Updates
    nu: optax.Updates


def adam(
    learning_rate: LearningRate,
    *,
    one_minus_b1: Scalar,
    one_minus_b2: Scalar,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    step_offset: Scalar = 0.0,
    b1_step_offset: Scalar | None = None,
) -> optax.GradientTransformation:
    """Return AdamW (Kingma & Ba 2015, arXiv 1412.6980; Loshchilov & Hutter 2019, arXiv 1711.05101).

    mu += (1-b1)(g - mu); nu += (1-b2)(g^2 - nu); p -= lr (mu/(1-b1^t) / (sqrt(nu/(1-b2^t)) + eps) + wd p).
    Pass `1 - b = -expm1(-ln2 * batch * context / half_life_tokens)`, computed in float64 by
    `smallbatch.units.one_minus_b_from_half_life`. All hyperparameters may be traced.

    Args:
        learning_rate: function from the number of finished updates to the learning rate.
        one_minus_b1, one_minus_b2: 1 - b, in (0, 1].
        weight_decay: decoupled, times the learning rate.
        step_offset: see `smallbatch.optim.descent`.
        b1_step_offset: the same for b1 only; None: equal to step_offset.
    """

    def direction(grads: optax.Updates, state: AdamState, params: optax.Params, age: jax.Array):
        del params
        mu = average(state.mu, grads, one_minus_b1)
        nu = average(state.nu, jax.tree.map(jnp.square, grads), one_minus_b2)
        mu_scale = 1 / bias_correction(b1_age(state.count, age, b1_step_offset), one_minus_b1)
        nu_scale = 1 / bias_correction(age, one_minus_b2)
        scaled = lambda m, n: m * mu_scale / (jnp.sqrt(n * nu_scale) + eps)
        return jax.tree.map(scaled, mu, nu), AdamState(state.count, mu, nu)

    init = lambda p: AdamState(no_updates(), zeros(p), zeros(p))
    return descent(init, direction, learning_rate, weight_decay, step_offset)
