"""Plain SGD: one counter of state, and nothing that would keep a gradient alive after its parameter is updated."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class SgdState(NamedTuple):
    """No averages at all."""

    count: jax.Array  # shape=(), dtype=int32: finished updates


def sgd(
    learning_rate: Callable[[jax.Array], jax.Array], *, weight_decay: jax.Array | float = 0.0
) -> optax.GradientTransformation:
    """Return stochastic gradient descent without momentum: p -= lr (g + wd p)."""

    def init(params: optax.Params) -> SgdState:
        del params
        return SgdState(jnp.zeros((), jnp.int32))

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None):
        assert isinstance(state, SgdState)
        if params is None:
            raise ValueError("sgd needs the parameters: call update(grads, state, params)")
        lr = learning_rate(state.count)
        delta = lambda g, p: -lr * (g.astype(jnp.float32) + weight_decay * p.astype(jnp.float32))
        return jax.tree.map(delta, updates, params), SgdState(state.count + 1)

    return optax.GradientTransformation(init, update)
