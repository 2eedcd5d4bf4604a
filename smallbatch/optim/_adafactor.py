"""Adafactor: a second moment kept as one number a row and one a column, with a true half-life, or with 1 - t^-c.

The two are different optimizers. The published code of Marek et al. passes beta2 where the exponent c is expected, so
that its second moment averages over nearly the whole history, whatever beta2 is.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smallbatch.optim.descent import LearningRate, Scalar, average, bias_correction, descent, no_updates

SQUARE_EPS = 1e-30  # added to squared gradients
CLIP_RMS = 1.0  # an update of a larger root mean square is scaled down to it
SMALLEST_SCALE = 1e-3  # of a parameter's root mean square, by which the learning rate is multiplied


class AdafactorState(NamedTuple):
    """4 bytes a row and 4 a column. Vectors have a row for each number, and no columns."""

    count: jax.Array  # shape=(), dtype=int32: finished updates
    row: optax.Updates
    column: optax.Updates


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return rows and columns of a parameter: its axes, cut in two where rows + columns is smallest, first if equal."""
    cuts = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
    return min(cuts, key=sum) if cuts else (math.prod(shape), 1)


def adafactor(
    learning_rate: LearningRate, *, one_minus_b2: Scalar, weight_decay: Scalar = 0.0, step_offset: Scalar = 0.0
) -> optax.GradientTransformation:
    """Return Adafactor whose second moment forgets with a constant decay, bias-corrected, and without momentum.

    r += (1-b2)(mean_columns(g^2 + 1e-30) - r), c likewise over rows; v = r c / mean(r) / (1-b2^t); u = g / sqrt(v);
    p -= lr (max(rms(p), 1e-3) u / max(1, rms(u)) + wd p).
    Source: Shazeer & Stern 2018, arXiv 1804.04235, algorithms 4 and 5, with a constant b2.
    """

    def decay(age: jax.Array):
        return one_minus_b2, bias_correction(age, one_minus_b2)

    return _factored(learning_rate, decay, weight_decay, step_offset)


def adafactor_power(
    learning_rate: LearningRate,
    *,
    decay_exponent: Scalar = 0.8,
    weight_decay: Scalar = 0.0,
    step_offset: Scalar = 0.0,
) -> optax.GradientTransformation:
    """Return Adafactor as published: update t has 1 - b2 = t^-c, which needs no bias correction.

    Its memory grows with the run: at update t a squared gradient's weight halves within about ln2 t^c more (c < 1), so
    no half-life in tokens describes it. Source: Shazeer & Stern 2018, section 7.2, c = 0.8.
    """

    def decay(age: jax.Array):
        return age ** -jnp.asarray(decay_exponent, jnp.float32), jnp.float32(1)

    return _factored(learning_rate, decay, weight_decay, step_offset)


def _factored(
    learning_rate: LearningRate,
    decay: Callable[[jax.Array], tuple[Scalar, jax.Array]],
    weight_decay: Scalar,
    step_offset: Scalar,
) -> optax.GradientTransformation:
    def init(params: optax.Params) -> AdafactorState:
        row = jax.tree.map(lambda p: jnp.zeros(matrix_shape(p.shape)[0], jnp.float32), params)
        column = jax.tree.map(lambda p: jnp.zeros(matrix_shape(p.shape)[1], jnp.float32), params)
        return AdafactorState(no_updates(), row, column)

    def direction(grads: optax.Updates, state: AdafactorState, params: optax.Params, age: jax.Array):
        one_minus_b, correction = decay(age)

        def moments(g, row_R, column_C):
            squares_RxC = jnp.square(g).reshape(len(row_R), len(column_C)) + SQUARE_EPS
            means = jnp.mean(squares_RxC, axis=1), jnp.mean(squares_RxC, axis=0)
            return average((row_R, column_C), means, one_minus_b)

        def step(g, row_R, column_C, p):
            g_RxC = g.reshape(len(row_R), len(column_C))
            by_row_Rx1 = jax.lax.rsqrt(row_R / jnp.mean(row_R))[:, None]
            by_column_1xC = jax.lax.rsqrt(column_C / correction)[None, :]
            u_RxC = g_RxC * by_row_Rx1 * by_column_1xC
            scale = jnp.maximum(_rms(p.astype(jnp.float32)), SMALLEST_SCALE)
            return (u_RxC * (scale / jnp.maximum(1.0, _rms(u_RxC) / CLIP_RMS))).reshape(g.shape)

        pairs = jax.tree.map(moments, grads, state.row, state.column)
        row, column = (jax.tree.map(lambda _, pair, i=i: pair[i], grads, pairs) for i in range(2))
        return jax.tree.map(step, grads, row, column, params), AdafactorState(state.count, row, column)

    return descent(init, direction, learning_rate, weight_decay, step_offset)


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))
