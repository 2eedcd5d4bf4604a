"""Optimizers with one running average of the gradient: momentum in its two conventions, Signum, Lion.

Heavy-ball momentum sums gradients, so its update is 1/(1-b) times their average. The size of
the update therefore depends on the half-life. With the average it does not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smallbatch.optim.decay_rates import Decay, DecayRate, Scalar, Tokens, decay
from smallbatch.optim.transform import LearningRate, Tree, as_float32, average, with_learning_rate, zeros


class MomentumState(NamedTuple):
    count: jax.Array  # shape=(), dtype=int32
    mu: optax.Updates


def _init(params: optax.Params) -> MomentumState:
    return MomentumState(jnp.zeros((), jnp.int32), zeros(params))


def momentum(
    learning_rate: LearningRate,
    b1: DecayRate = None,
    *,
    t1_tokens: Tokens = None,
    tokens_per_step: Tokens = None,
    nesterov: bool = False,
    weight_decay: Scalar = 0.0,
) -> optax.GradientTransformation:
    """Return SGD with bias-corrected momentum.

    mu <- b mu + (1-b) g; p -= lr (mu/(1-b^t) + wd p). With `nesterov` the update is b mu/(1-b^(t+1)) + (1-b) g/(1-b^t)
    (Dozat 2016, Incorporating Nesterov Momentum into Adam, algorithm 2).
    """
    mu_decay = decay("b1", b1, t1_tokens, tokens_per_step)

    def update(updates, state, params=None):
        del params
        grads, count = as_float32(updates), state.count + 1
        mu = average(state.mu, grads, mu_decay.one_minus_b)
        return bias_corrected_momentum(mu, grads, mu_decay, count, nesterov), MomentumState(count, mu)

    return with_learning_rate(optax.GradientTransformation(_init, update), learning_rate, weight_decay)


def bias_corrected_momentum(mu: Tree, grads: Tree, mu_decay: Decay, count: jax.Array, nesterov: bool) -> Tree:
    """Return the update of `momentum`."""
    correction = mu_decay.bias_correction(count)
    if not nesterov:
        return jax.tree.map(lambda m: m / correction, mu)
    m_scale = (1 - mu_decay.one_minus_b) / mu_decay.bias_correction(count + 1)
    return jax.tree.map(lambda m, g: m * m_scale + g * (mu_decay.one_minus_b / correction), mu, grads)


def heavy_ball(
    learning_rate: LearningRate,
    b1: DecayRate = None,
    *,
    t1_tokens: Tokens = None,
    tokens_per_step: Tokens = None,
    nesterov: bool = False,
    weight_decay: Scalar = 0.0,
) -> optax.GradientTransformation:
    """Return SGD with heavy-ball momentum (Polyak 1964), as in PyTorch and `optax.trace`, without bias correction.

    mu <- b mu + g; p -= lr (mu + wd p). With `nesterov` the update is g + b mu (Sutskever et al. 2013).
    """
    one_minus_b1 = decay("b1", b1, t1_tokens, tokens_per_step).one_minus_b

    def update(updates, state, params=None):
        del params
        grads = as_float32(updates)
        mu = jax.tree.map(lambda m, g: m - one_minus_b1 * m + g, state.mu, grads)
        updates = jax.tree.map(lambda m, g: g + m - one_minus_b1 * m, mu, grads) if nesterov else mu
        return updates, MomentumState(state.count + 1, mu)

    return with_learning_rate(optax.GradientTransformation(_init, update), learning_rate, weight_decay)


def signum(
    learning_rate: LearningRate,
    b1: DecayRate = None,
    *,
    t1_tokens: Tokens = None,
    tokens_per_step: Tokens = None,
    weight_decay: Scalar = 0.0,
) -> optax.GradientTransformation:
    """Return Signum: mu <- b mu + (1-b) g; p -= lr (sign(mu) + wd p).

    Source: Bernstein et al. 2018, arXiv 1802.04434, algorithm 2. Without bias correction, which does not change signs.
    """
    one_minus_b1 = decay("b1", b1, t1_tokens, tokens_per_step).one_minus_b

    def update(updates, state, params=None):
        del params
        mu = average(state.mu, as_float32(updates), one_minus_b1)
        return jax.tree.map(jnp.sign, mu), MomentumState(state.count + 1, mu)

    return with_learning_rate(optax.GradientTransformation(_init, update), learning_rate, weight_decay)


def lion(
    learning_rate: LearningRate,
    b1: DecayRate = None,
    b2: DecayRate = None,
    *,
    t1_tokens: Tokens = None,
    t2_tokens: Tokens = None,
    tokens_per_step: Tokens = None,
    weight_decay: Scalar = 0.0,
) -> optax.GradientTransformation:
    """Return Lion: p -= lr (sign(b1 mu + (1-b1) g) + wd p); then mu <- b2 mu + (1-b2) g.

    Source: Chen et al. 2023, arXiv 2302.06675, algorithm 2. b1 is the weight of mu in the update; mu decays with b2.
    """
    one_minus_b1 = decay("b1", b1, t1_tokens, tokens_per_step).one_minus_b
    one_minus_b2 = decay("b2", b2, t2_tokens, tokens_per_step).one_minus_b

    def update(updates, state, params=None):
        del params
        grads = as_float32(updates)
        updates = jax.tree.map(jnp.sign, average(state.mu, grads, one_minus_b1))
        return updates, MomentumState(state.count + 1, average(state.mu, grads, one_minus_b2))

    return with_learning_rate(optax.GradientTransformation(_init, update), learning_rate, weight_decay)
