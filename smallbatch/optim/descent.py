"""What every optimizer here shares: one counter, float32 arithmetic, decoupled weight decay, running averages.

An average is `avg += (1 - b)(x - avg)`, with the complement 1 - b given as such: b itself is too close to 1 for
float32 (see `smallbatch.units`). Averages are float32 whatever the dtype of the parameters.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

LearningRate: TypeAlias = Callable[[jax.Array], jax.Array | float]  # from the number of finished updates
Scalar: TypeAlias = jax.Array | float


def zeros(params: optax.Params) -> optax.Updates:
    """Return the start of an average of each parameter's gradients."""
    return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)


def average(old: optax.Updates, new: optax.Updates, complement: Scalar) -> optax.Updates:
    """Return old + complement (new - old)."""
    return jax.tree.map(lambda a, x: a + complement * (x - a), old, new)


def bias_correction(count: jax.Array, complement: Scalar) -> jax.Array:
    """Return 1 - b^count for b = 1 - complement, without forming b: -expm1(count log1p(-complement))."""
    return -jnp.expm1(count.astype(jnp.float32) * jnp.log1p(-jnp.asarray(complement, jnp.float32)))


def descent(
    init: Callable[[optax.Params], Any],
    direction: Callable[[optax.Updates, Any, optax.Params], tuple[optax.Updates, Any]],
    learning_rate: LearningRate,
    weight_decay: Scalar,
) -> optax.GradientTransformation:
    """Return the transformation p -= lr (u + wd p), where u comes from `direction`.

    Args:
        init: from the parameters to a NamedTuple that has a field `count`, the number of finished updates.
        direction: from float32 gradients, the state with its count already raised, and the parameters to u and the
            new state.
        weight_decay: decoupled (Loshchilov & Hutter 2019, arXiv 1711.05101), times the learning rate.
    """

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None):
        if params is None:
            raise ValueError("this optimizer needs the parameters: call update(grads, state, params)")
        lr = learning_rate(state.count)  # pyright: ignore[reportAttributeAccessIssue]
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), updates)
        counted = state._replace(count=state.count + 1)  # pyright: ignore[reportAttributeAccessIssue]
        directions, state = direction(grads, counted, params)
        return jax.tree.map(lambda u, p: -lr * (u + weight_decay * p.astype(jnp.float32)), directions, params), state

    return optax.GradientTransformation(lambda params: init(params), update)


def no_updates() -> jax.Array:
    """Return the counter before the first update, int32."""
    return jnp.zeros((), jnp.int32)
