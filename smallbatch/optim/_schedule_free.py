"""Schedule-free SGD and AdamW: averaging the iterates replaces a learning-rate schedule.

There are three sequences. Gradients are taken at the parameters y. Updates are applied to z, which is optimizer state.
The average of z, x, is used for evaluation and is computed from y and z.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smallbatch.optim.decay_rates import Decay, DecayRate, Scalar, Tokens, decay
from smallbatch.optim.transform import LearningRate, Tree, as_float32, average, required, zeros


class ScheduleFreeState(NamedTuple):
    count: jax.Array  # shape=(), dtype=int32
    weight_sum: jax.Array  # shape=(): sum of the weights of z in the average
    weight_rest: jax.Array  # shape=(): rounding error of that sum
    max_lr: jax.Array  # shape=()
    z: Tree
    nu: Tree  # None with SGD


def schedule_free_sgd(
    learning_rate: LearningRate, *, interpolation: Scalar = 0.9, weight_decay: Scalar = 0.0
) -> optax.GradientTransformation:
    """Return schedule-free SGD.

    z -= lr (u + wd y) with u = g; x += w/W (z - x), where w is the square of the largest lr so far and W the sum of all
    w; y = a x + (1-a) z, where a is `interpolation`. The parameters are y. Evaluate at x (see `evaluated`).
    Source: Defazio et al. 2024, arXiv 2405.15682, equations 3 to 5 and section 4.4 (weights).
    """
    return _schedule_free(learning_rate, interpolation, weight_decay)


def schedule_free_adamw(
    learning_rate: LearningRate,
    b2: DecayRate = None,
    *,
    t2_tokens: Tokens = None,
    tokens_per_step: Tokens = None,
    interpolation: Scalar = 0.9,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
) -> optax.GradientTransformation:
    """Return schedule-free AdamW: `schedule_free_sgd` with u = g / (sqrt(nu / (1-b2^t)) + eps)."""
    nu_decay = decay("b2", b2, t2_tokens, tokens_per_step)
    return _schedule_free(learning_rate, interpolation, weight_decay, nu_decay, eps)


def evaluated(params: Tree, z: Tree, interpolation: Scalar) -> Tree:
    """Return x = (y - (1-a) z) / a, the float32 average to evaluate; a: interpolation."""
    return jax.tree.map(lambda y, z: (y - (1 - interpolation) * z) / interpolation, params, z)


def _schedule_free(
    learning_rate: LearningRate,
    interpolation: Scalar,
    weight_decay: Scalar,
    nu_decay: Decay | None = None,
    eps: Scalar = 0.0,
) -> optax.GradientTransformation:
    """Return the optimizer of `schedule_free_sgd`, or with `nu_decay` that of `schedule_free_adamw`.

    W is a compensated sum: a plain float32 sum is 1% low after 4 million equal weights and stops growing after 8
    million. x is computed from y and z, so y must be float32.
    """

    def init(params):
        for p in jax.tree.leaves(params):
            if p.dtype != jnp.float32:
                raise ValueError(f"A parameter has dtype {p.dtype}. Use float32 for schedule-free optimizers.")
        z = jax.tree.map(lambda p: p + 0, params)  # a copy: params may be donated
        zero = jnp.zeros((), jnp.float32)
        nu = None if nu_decay is None else zeros(params)
        return ScheduleFreeState(jnp.zeros((), jnp.int32), zero, zero, zero, z, nu)

    def update(updates, state, params=None):
        params, grads, count = required(params), as_float32(updates), state.count + 1
        lr = jnp.asarray(learning_rate(state.count) if callable(learning_rate) else learning_rate, jnp.float32)
        max_lr = jnp.maximum(state.max_lr, lr)
        weight = jnp.square(max_lr)
        weight_sum, weight_rest = _compensated_sum(state.weight_sum, state.weight_rest, weight)
        share = jnp.where(weight_sum > 0, weight / jnp.where(weight_sum > 0, weight_sum, 1), 0)
        updates, nu = grads, None
        if nu_decay is not None:
            nu = average(state.nu, jax.tree.map(jnp.square, grads), nu_decay.one_minus_b)
            nu_scale = 1 / nu_decay.bias_correction(count)
            updates = jax.tree.map(lambda g, n: g / (jnp.sqrt(n * nu_scale) + eps), grads, nu)
        z = jax.tree.map(lambda z, u, y: z - lr * (u + weight_decay * y), state.z, updates, params)

        def delta(y, old_z, new_z):
            """Return y' - y, where y' = a (x + share (z' - x)) + (1-a) z', without a division."""
            a_x = y - (1 - interpolation) * old_z
            return share * (interpolation * new_z - a_x) + (1 - interpolation) * (new_z - old_z)

        deltas = jax.tree.map(delta, params, state.z, z)
        return deltas, ScheduleFreeState(count, weight_sum, weight_rest, max_lr, z, nu)

    return optax.GradientTransformation(init, update)


def _compensated_sum(total: jax.Array, rest: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return total + x and its rounding error; `rest` is that of the earlier additions (Kahan 1965)."""
    y = x + rest
    new_total = total + y
    return new_total, y - (new_total - total)
