"""Plain SGD and its sign: one counter of state, and nothing that would keep a gradient alive after its update."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smallbatch.optim.descent import LearningRate, Scalar, descent, no_updates


class SgdState(NamedTuple):
    """No averages at all: 0 bytes a parameter."""

    count: jax.Array  # shape=(), dtype=int32: finished updates


def sgd(learning_rate: LearningRate, *, weight_decay: Scalar = 0.0) -> optax.GradientTransformation:
    """Return stochastic gradient descent without momentum: p -= lr (g + wd p)."""
    return descent(lambda _: SgdState(no_updates()), lambda g, state, *_: (g, state), learning_rate, weight_decay)


def sign_sgd(learning_rate: LearningRate, *, weight_decay: Scalar = 0.0) -> optax.GradientTransformation:
    """Return sign descent: p -= lr (sign(g) + wd p) (Bernstein et al. 2018, arXiv 1802.04434)."""

    def direction(grads: optax.Updates, state: SgdState, params: optax.Params, age: jax.Array):
        del params, age
        return jax.tree.map(jnp.sign, grads), state

    return descent(lambda _: SgdState(no_updates()), direction, learning_rate, weight_decay)
