"""Schedule-free SGD and AdamW: an average of the iterates in the place of a falling learning rate.

Three sequences: gradients are taken at y, the optimizer moves z, and x, the average of z, is what is evaluated. The
trained parameters are y; z is state; x follows from the two.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smallbatch.optim.descent import LearningRate, Scalar, Tree, average, bias_correction, no_updates, zeros


class ScheduleFreeState(NamedTuple):
    """4 bytes a parameter for z, and with AdamW 4 for nu."""

    count: jax.Array  # shape=(), dtype=int32: finished updates
    weight_sum: jax.Array  # shape=(): sum of the weights of z in the average
    weight_rest: jax.Array  # shape=(): rounding error of that sum
    max_lr: jax.Array  # shape=()
    z: Tree
    nu: Tree  # None with SGD


def schedule_free_sgd(
    learning_rate: LearningRate, *, interpolation: Scalar = 0.9, weight_decay: Scalar = 0.0
) -> optax.GradientTransformation:
    """Return schedule-free SGD: u = g in the rule of `_schedule_free`."""
    return _schedule_free(learning_rate, interpolation, weight_decay, None, 0.0, 0.0)


def schedule_free_adamw(
    learning_rate: LearningRate,
    *,
    one_minus_b2: Scalar,
    interpolation: Scalar = 0.9,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    step_offset: Scalar = 0.0,
) -> optax.GradientTransformation:
    """Return schedule-free AdamW: u = g / (sqrt(nu / (1-b2^t)) + eps) in the rule of `_schedule_free`; no momentum."""
    return _schedule_free(learning_rate, interpolation, weight_decay, one_minus_b2, eps, step_offset)


def evaluated(params: Tree, z: Tree, interpolation: Scalar) -> Tree:
    """Return x = (y - (1-a) z) / a, the average that is evaluated; a: interpolation. Float32."""
    return jax.tree.map(lambda y, z: (y - (1 - interpolation) * z) / interpolation, params, z)


def compensated_sum(total: jax.Array, rest: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return total + x and its rounding error; `rest` is the rounding error of the earlier additions."""
    y = x + rest
    found = total + y
    return found, y - (found - total)


def _schedule_free(
    learning_rate: LearningRate,
    interpolation: Scalar,
    weight_decay: Scalar,
    one_minus_b2: Scalar | None,
    eps: Scalar,
    step_offset: Scalar,
) -> optax.GradientTransformation:
    """Return z -= lr (u + wd y); x += w/W (z - x), w the largest lr so far squared, W their sum; y = a x + (1-a) z.

    W is a compensated sum (Kahan 1965): a plain float32 sum is 1% low after 4 million equal weights and stops growing
    after 8 million. x is computed from y and z, so y must be float32.
    Source: Defazio et al. 2024, arXiv 2405.15682, equations 3 to 5 and section 4.4 (weights).
    """

    def init(params: optax.Params) -> ScheduleFreeState:
        for p in jax.tree.leaves(params):
            if p.dtype != jnp.float32:
                raise ValueError(f"a parameter is {p.dtype}, and schedule-free optimizers need float32; cast it first")
        z = jax.tree.map(lambda p: p + 0, params)  # a copy: params may be donated
        zero = jnp.zeros((), jnp.float32)
        return ScheduleFreeState(no_updates(), zero, zero, zero, z, None if one_minus_b2 is None else zeros(params))

    def update(updates: optax.Updates, state: ScheduleFreeState, params: optax.Params | None = None):
        if params is None:
            raise ValueError("this optimizer needs the parameters: call update(grads, state, params)")
        lr = jnp.asarray(learning_rate(state.count), jnp.float32)
        count, max_lr = state.count + 1, jnp.maximum(state.max_lr, lr)
        weight_sum, weight_rest = compensated_sum(state.weight_sum, state.weight_rest, jnp.square(max_lr))
        share = jnp.where(weight_sum > 0, jnp.square(max_lr) / jnp.where(weight_sum > 0, weight_sum, 1), 0)
        u, nu = jax.tree.map(lambda g: g.astype(jnp.float32), updates), None
        if one_minus_b2 is not None:
            nu = average(state.nu, jax.tree.map(jnp.square, u), one_minus_b2)
            nu_scale = 1 / bias_correction(count.astype(jnp.float32) + step_offset, one_minus_b2)
            u = jax.tree.map(lambda g, n: g / (jnp.sqrt(n * nu_scale) + eps), u, nu)
        z = jax.tree.map(lambda z, u, y: z - lr * (u + weight_decay * y.astype(jnp.float32)), state.z, u, params)

        def delta(y, old_z, new_z):
            # y' - y, where y' = a (x + share (new_z - x)) + (1-a) new_z, without a division.
            ahead = y - (1 - interpolation) * old_z  # a x
            return share * (interpolation * new_z - ahead) + (1 - interpolation) * (new_z - old_z)

        deltas = jax.tree.map(delta, params, state.z, z)
        return deltas, ScheduleFreeState(count, weight_sum, weight_rest, max_lr, z, nu)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]
