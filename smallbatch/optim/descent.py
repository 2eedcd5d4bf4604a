"""What every optimizer here shares: one counter, float32 arithmetic, decoupled weight decay, running averages.

An average is `avg += (1 - b)(x - avg)`, with the one_minus_b 1 - b given as such: b itself is too close to 1 for
float32 (see `smallbatch.units`). Averages are float32 whatever the dtype of the parameters.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

LearningRate: TypeAlias = Callable[[jax.Array], jax.Array | float]  # from the number of finished updates
Scalar: TypeAlias = jax.Array | float
Tree: TypeAlias = Any  # a pytree of arrays


def zeros(params: Tree) -> Tree:
    """Return the start of an average of each parameter's gradients."""
    return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)


def average(old: Tree, new: Tree, one_minus_b: Scalar) -> Tree:
    """Return old + one_minus_b (new - old), computed as an increment to the term with the larger weight.

    With a one_minus_b near 1 the plain formula cancels: with a one_minus_b of 1 a `new` far below `old` would be lost,
    and a second moment would be 0 for a nonzero gradient.
    """
    mostly_new = jnp.asarray(one_minus_b, jnp.float32) > 0.5
    weight = jnp.where(mostly_new, 1 - one_minus_b, one_minus_b)  # 1 - c is exact for c in [1/2, 1]

    def blend(a, x):
        return jnp.where(mostly_new, x, a) + weight * jnp.where(mostly_new, a - x, x - a)

    return jax.tree.map(blend, old, new)


def bias_correction(age: Scalar, one_minus_b: Scalar) -> jax.Array:
    """Return 1 - b^age for b = 1 - one_minus_b, without forming b: -expm1(age log1p(-one_minus_b)). age: in updates."""
    return -jnp.expm1(jnp.asarray(age, jnp.float32) * jnp.log1p(-jnp.asarray(one_minus_b, jnp.float32)))


def b1_age(count: jax.Array, age: jax.Array, b1_step_offset: Scalar | None) -> jax.Array:
    """Return the effective step of the average of the gradient, which differs only if b1 has its own offset."""
    return age if b1_step_offset is None else count.astype(jnp.float32) + b1_step_offset


def descent(
    init: Callable[[optax.Params], Any],
    direction: Callable[[optax.Updates, Any, optax.Params, jax.Array], tuple[optax.Updates, Any]],
    learning_rate: LearningRate,
    weight_decay: Scalar,
    step_offset: Scalar = 0.0,
) -> optax.GradientTransformation:
    """Return the transformation p -= lr (u + wd p), where u comes from `direction`.

    Args:
        init: from the parameters to a NamedTuple that has a field `count`, the number of finished updates.
        direction: from float32 gradients, the state with its count already raised, the parameters and the age to u
            and the new state. The age is what biases are corrected for: the updates so far, in updates of this size.
        weight_decay: decoupled (Loshchilov & Hutter 2019, arXiv 1711.05101), times the learning rate.
        step_offset: age - count; not 0 where the tokens of earlier updates came in batches of another size.
    """

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None):
        if params is None:
            raise ValueError("this optimizer needs the parameters: call update(grads, state, params)")
        lr = learning_rate(state.count)  # pyright: ignore[reportAttributeAccessIssue]
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), updates)
        counted = state._replace(count=state.count + 1)  # pyright: ignore[reportAttributeAccessIssue]
        age = counted.count.astype(jnp.float32) + step_offset
        directions, state = direction(grads, counted, params, age)
        return jax.tree.map(lambda u, p: -lr * (u + weight_decay * p.astype(jnp.float32)), directions, params), state

    return optax.GradientTransformation(lambda params: init(params), update)


def no_updates() -> jax.Array:
    """Return the counter before the first update, int32."""
    return jnp.zeros((), jnp.int32)
