"""Plain SGD and sign SGD, whose only state is a counter."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smallbatch.optim.decay_rates import Scalar
from smallbatch.optim.transform import LearningRate, as_float32, with_learning_rate


class SgdState(NamedTuple):
    count: jax.Array  # shape=(), dtype=int32


def sgd(learning_rate: LearningRate, *, weight_decay: Scalar = 0.0) -> optax.GradientTransformation:
    """Return stochastic gradient descent without momentum: p -= lr (g + wd p)."""
    return with_learning_rate(_stateless(lambda g: g), learning_rate, weight_decay)


def sign_sgd(learning_rate: LearningRate, *, weight_decay: Scalar = 0.0) -> optax.GradientTransformation:
    """Return sign SGD: p -= lr (sign(g) + wd p) (Bernstein et al. 2018, arXiv 1802.04434, algorithm 1)."""
    return with_learning_rate(_stateless(jnp.sign), learning_rate, weight_decay)


def _stateless(function: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformation:
    def update(updates, state, params=None):
        del params
        return jax.tree.map(function, as_float32(updates)), SgdState(state.count + 1)

    return optax.GradientTransformation(lambda params: SgdState(jnp.zeros((), jnp.int32)), update)
