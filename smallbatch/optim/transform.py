"""The parts that all optimizers share: running averages, weight decay and the learning rate.

Gradients are cast to float32 and averages are float32, whatever the dtype of the parameters.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from smallbatch.optim.decay_rates import Scalar

Tree: TypeAlias = Any  # a pytree of arrays
LearningRate: TypeAlias = Scalar | Callable[[jax.Array], Scalar]  # a schedule maps finished updates to a rate


def zeros(params: Tree) -> Tree:
    """Return float32 zeros in the shapes of `params`: a running average before the first update."""
    return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)


def as_float32(tree: Tree) -> Tree:
    """Cast every array of a pytree to float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def average(old: Tree, new: Tree, one_minus_b: Scalar) -> Tree:
    """Return b old + (1 - b) new, computed as an increment to the term with the larger weight.

    For 1 - b near 1, old + (1-b) (new - old) loses precision by cancellation. With 1 - b = 1, a `new` much smaller than
    `old` would be rounded away, and a second moment could be 0 for a nonzero gradient.
    """
    mostly_new = jnp.asarray(one_minus_b, jnp.float32) > 0.5
    weight = jnp.where(mostly_new, 1 - one_minus_b, one_minus_b)  # 1 - c is exact for c in [1/2, 1]

    def blend(a, x):
        return jnp.where(mostly_new, x, a) + weight * jnp.where(mostly_new, a - x, x - a)

    return jax.tree.map(blend, old, new)


def with_learning_rate(
    transformation: optax.GradientTransformation, learning_rate: LearningRate, weight_decay: Scalar = 0.0
) -> optax.GradientTransformation:
    """Return the optimizer p -= lr (u + wd p), where u is the update of `transformation`.

    Equals `optax.chain(transformation, optax.add_decayed_weights(wd), optax.scale_by_learning_rate(lr))` with a single
    counter: a schedule reads the `count` of the transformation's state. The weight decay is decoupled (Loshchilov &
    Hutter 2019, arXiv 1711.05101).
    """
    without_decay = isinstance(weight_decay, int | float) and weight_decay == 0

    def update(updates, state, params=None):
        lr = learning_rate(state.count) if callable(learning_rate) else learning_rate
        updates, state = transformation.update(updates, state, params)
        if without_decay:
            return jax.tree.map(lambda u: -lr * u, updates), state
        params = required(params)
        return jax.tree.map(lambda u, p: -lr * (u + weight_decay * p.astype(jnp.float32)), updates, params), state

    return optax.GradientTransformation(transformation.init, update)


def required(params: optax.Params | None) -> optax.Params:
    """Return params, or raise ValueError if update() was called without them."""
    if params is None:
        raise ValueError("params is None. This optimizer needs the parameters. Call update(grads, state, params).")
    return params
