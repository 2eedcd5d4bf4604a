"""Adafactor: a factored second moment, with a constant decay rate or with the published 1 - b2 = t^-c.

The two are different optimizers. The published code of Marek et al. 2025 passes b2 as the exponent c, so its second
moment averages over nearly the whole history, whatever the value of b2.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smallbatch.optim.decay_rates import DecayRate, Scalar, Tokens, decay
from smallbatch.optim.transform import LearningRate, as_float32, average, required, with_learning_rate

SQUARE_EPS = 1e-30  # added to squared gradients
CLIP_RMS = 1.0  # largest root mean square of an update
MIN_PARAM_RMS = 1e-3  # floor of the root mean square of a parameter, which multiplies the learning rate


class AdafactorState(NamedTuple):
    count: jax.Array  # shape=(), dtype=int32
    row: optax.Updates  # one value per row; a vector is a matrix with one column
    column: optax.Updates


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows and columns of a parameter viewed as a matrix, split to minimize rows + columns."""
    splits = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
    return min(splits, key=sum) if splits else (math.prod(shape), 1)


def adafactor(
    learning_rate: LearningRate,
    b2: DecayRate = None,
    *,
    t2_tokens: Tokens = None,
    tokens_per_step: Tokens = None,
    weight_decay: Scalar = 0.0,
) -> optax.GradientTransformation:
    """Return Adafactor with a constant, bias-corrected decay rate and without momentum.

    r <- b2 r + (1-b2) mean_columns(g^2 + 1e-30), c with mean_rows; v = r c / mean(r) / (1-b2^t); u = g / sqrt(v);
    p -= lr (max(rms(p), 1e-3) u / max(1, rms(u)) + wd p).
    Source: Shazeer & Stern 2018, arXiv 1804.04235, algorithms 4 and 5, with a constant b2.
    """
    v_decay = decay("b2", b2, t2_tokens, tokens_per_step)
    factored = _scale_by_factored(lambda count: (v_decay.one_minus_b, v_decay.bias_correction(count)))
    return with_learning_rate(factored, learning_rate, weight_decay)


def adafactor_power(
    learning_rate: LearningRate,
    *,
    decay_exponent: Scalar = 0.8,
    weight_decay: Scalar = 0.0,
    step_offset: Scalar = 0.0,
) -> optax.GradientTransformation:
    """Return Adafactor as published: update t uses 1 - b2 = t^-c, which needs no bias correction.

    Its averaging window grows during the run: after update t the weight of a squared gradient halves in about ln2 t^c
    updates (c < 1), so it has no fixed half-life in tokens. Source: Shazeer & Stern 2018, section 7.2, c = 0.8.

    Args:
        step_offset: t minus the number of updates; see `smallbatch.optim.Decay`.
    """

    def one_minus_b2_and_correction(count):
        step = count.astype(jnp.float32) + step_offset
        return step ** -jnp.asarray(decay_exponent, jnp.float32), jnp.float32(1)

    return with_learning_rate(_scale_by_factored(one_minus_b2_and_correction), learning_rate, weight_decay)


def _scale_by_factored(
    one_minus_b2_and_correction: Callable[[jax.Array], tuple[Scalar, jax.Array]],
) -> optax.GradientTransformation:
    def init(params):
        row = jax.tree.map(lambda p: jnp.zeros(matrix_shape(p.shape)[0], jnp.float32), params)
        column = jax.tree.map(lambda p: jnp.zeros(matrix_shape(p.shape)[1], jnp.float32), params)
        return AdafactorState(jnp.zeros((), jnp.int32), row, column)

    def update(updates, state, params=None):
        params, grads, count = required(params), as_float32(updates), state.count + 1
        one_minus_b2, correction = one_minus_b2_and_correction(count)

        def mean_square(g, axis):
            return jnp.mean(jnp.square(g).reshape(matrix_shape(g.shape)) + SQUARE_EPS, axis=axis)

        row = average(state.row, jax.tree.map(lambda g: mean_square(g, 1), grads), one_minus_b2)
        column = average(state.column, jax.tree.map(lambda g: mean_square(g, 0), grads), one_minus_b2)

        def update_of(g, row_R, column_C, p):
            by_row_Rx1 = jax.lax.rsqrt(row_R / jnp.mean(row_R))[:, None]
            by_column_1xC = jax.lax.rsqrt(column_C / correction)[None, :]
            u_RxC = g.reshape(matrix_shape(g.shape)) * by_row_Rx1 * by_column_1xC
            scale = jnp.maximum(_rms(p.astype(jnp.float32)), MIN_PARAM_RMS)
            return (u_RxC * (scale / jnp.maximum(1.0, _rms(u_RxC) / CLIP_RMS))).reshape(g.shape)

        return jax.tree.map(update_of, grads, row, column, params), AdafactorState(count, row, column)

    return optax.GradientTransformation(init, update)


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))
