"""Optimizers with one average, of the gradient: SGD with momentum in its two conventions, Signum, Lion.

The two conventions differ by a factor that depends on the decay: a heavy ball sums gradients and so moves 1/(1-b) times
as far as their average does. Across batch sizes only the average keeps its learning rate apart from its half-life.
"""

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


class MomentumState(NamedTuple):
    """4 bytes a parameter."""

    count: jax.Array  # shape=(), dtype=int32: finished updates
    mu: optax.Updates


def _init(params: optax.Params) -> MomentumState:
    return MomentumState(no_updates(), zeros(params))


def momentum(
    learning_rate: LearningRate,
    *,
    one_minus_b1: Scalar,
    nesterov: bool = False,
    weight_decay: Scalar = 0.0,
    step_offset: Scalar = 0.0,
    b1_step_offset: Scalar | None = None,
) -> optax.GradientTransformation:
    """Return SGD along the bias-corrected average of the gradients.

    mu += (1-b)(g - mu); p -= lr (mu/(1-b^t) + wd p); with `nesterov` b mu/(1-b^(t+1)) + (1-b) g/(1-b^t) in the place
    of mu/(1-b^t) (Dozat 2016, Incorporating Nesterov Momentum into Adam, algorithm 2).
    """

    def direction(grads: optax.Updates, state: MomentumState, params: optax.Params, age: jax.Array):
        del params
        mu = average(state.mu, grads, one_minus_b1)
        unbiased = unbiased_momentum(mu, grads, b1_age(state.count, age, b1_step_offset), one_minus_b1, nesterov)
        return unbiased, MomentumState(state.count, mu)

    return descent(_init, direction, learning_rate, weight_decay, step_offset)


def unbiased_momentum(
    mu: optax.Updates, grads: optax.Updates, age: jax.Array, one_minus_b1: Scalar, nesterov: bool
) -> optax.Updates:
    """Return the bias-corrected average after `age` updates, or with `nesterov` a look ahead by one more update."""
    now = bias_correction(age, one_minus_b1)
    if not nesterov:
        return jax.tree.map(lambda m: m / now, mu)
    ahead = (1 - one_minus_b1) / bias_correction(age + 1, one_minus_b1)
    return jax.tree.map(lambda m, g: m * ahead + g * (one_minus_b1 / now), mu, grads)


def heavy_ball(
    learning_rate: LearningRate, *, one_minus_b1: Scalar, nesterov: bool = False, weight_decay: Scalar = 0.0
) -> optax.GradientTransformation:
    """Return SGD with the momentum of Polyak 1964, as PyTorch and `optax.trace` have it, without bias correction.

    mu <- b mu + g; p -= lr (mu + wd p); with `nesterov` g + b mu in the place of mu (Sutskever et al. 2013).
    """

    def direction(grads: optax.Updates, state: MomentumState, params: optax.Params, age: jax.Array):
        del params, age
        mu = jax.tree.map(lambda m, g: m - one_minus_b1 * m + g, state.mu, grads)
        ahead = jax.tree.map(lambda m, g: g + m - one_minus_b1 * m, mu, grads) if nesterov else mu
        return ahead, MomentumState(state.count, mu)

    return descent(_init, direction, learning_rate, weight_decay)


def signum(
    learning_rate: LearningRate, *, one_minus_b1: Scalar, weight_decay: Scalar = 0.0
) -> optax.GradientTransformation:
    """Return sign descent along the average: mu += (1-b)(g - mu); p -= lr (sign(mu) + wd p).

    Source: Bernstein et al. 2018, arXiv 1802.04434, algorithm 2. A bias correction would not change a sign.
    """

    def direction(grads: optax.Updates, state: MomentumState, params: optax.Params, age: jax.Array):
        del params, age
        mu = average(state.mu, grads, one_minus_b1)
        return jax.tree.map(jnp.sign, mu), MomentumState(state.count, mu)

    return descent(_init, direction, learning_rate, weight_decay)


def lion(
    learning_rate: LearningRate, *, one_minus_b1: Scalar, one_minus_b2: Scalar, weight_decay: Scalar = 0.0
) -> optax.GradientTransformation:
    """Return Lion: p -= lr (sign(mu + (1-b1)(g - mu)) + wd p); then mu += (1-b2)(g - mu).

    Source: Chen et al. 2023, arXiv 2302.06675, algorithm 2. b1 says how much of the average enters the step and is no
    memory of its own; the average forgets with b2.
    """

    def direction(grads: optax.Updates, state: MomentumState, params: optax.Params, age: jax.Array):
        del params, age
        signs = jax.tree.map(jnp.sign, average(state.mu, grads, one_minus_b1))
        return signs, MomentumState(state.count, average(state.mu, grads, one_minus_b2))

    return descent(_init, direction, learning_rate, weight_decay)
