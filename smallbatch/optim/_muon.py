"""Muon: each matrix moves along the nearest orthogonal matrix to its momentum; embeddings and the output use Adam."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smallbatch.optim._momentum import unbiased_momentum
from smallbatch.optim.descent import (
    LearningRate,
    Scalar,
    average,
    b1_age,
    bias_correction,
    descent,
    no_updates,
    zeros,
)

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steepest at 0, singular values end in about 0.7 to 1.2
NEWTON_SCHULZ_STEPS = 5

# (path, shape) -> (axes of the input, axes of the output), the other axes counting separate matrices; None for Adam.
Layout = Callable[[str, tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]] | None]


class MuonState(NamedTuple):
    """4 bytes a parameter, and 4 more where Adam is used."""

    count: jax.Array  # shape=(), dtype=int32: finished updates
    mu: optax.Updates
    nu: dict[str, jax.Array]  # by path, of the parameters that Adam moves


def gpt_layout(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the matrix axes of a parameter of our GPT. q, k and v are one matrix each, spanning all heads.

    The code of Muon's authors orthogonalizes these whole matrices; Marek et al. 2025 those of each head
    (`gpt_head_layout`).
    """
    if "embed" in path or len(shape) < 2:
        return None
    if len(shape) == 4:  # qkv_Dx3xNxH
        return (0,), (2, 3)
    return ((0, 1), (2,)) if len(shape) == 3 else ((0,), (1,))  # out_NxHxD; up_DxF, down_FxD


def gpt_head_layout(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the matrix axes with q, k, v and output matrices per head, as in the code of Marek et al. 2025."""
    if "embed" not in path and len(shape) > 2:
        return ((0,), (3,)) if len(shape) == 4 else ((1,), (2,))  # qkv_Dx3xNxH; out_NxHxD
    return gpt_layout(path, shape)


def muon(
    learning_rate: LearningRate,
    *,
    one_minus_b1: Scalar,
    one_minus_b2: Scalar,
    embed_lr_ratio: Scalar,
    eps: Scalar = 1e-8,
    nesterov: bool = False,
    weight_decay: Scalar = 0.0,
    step_offset: Scalar = 0.0,
    b1_step_offset: Scalar | None = None,
    layout: Layout = gpt_layout,
) -> optax.GradientTransformation:
    """Return Muon (Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks).

    mu += (1-b1)(g - mu); p -= lr (sqrt(max(1, out/in)) orthogonal(mu/(1-b1^t)) + wd p), where orthogonal(U S V^T)
    is close to U V^T. What `layout` leaves to Adam moves by p -= lr embed_lr_ratio (Adam's direction + wd p), with
    the same b1. With `nesterov` the momentum is that of `smallbatch.optim.momentum`.
    """

    def init(params: optax.Params) -> MuonState:
        by_path = jax.tree_util.tree_leaves_with_path(params)
        by_adam = [(_name(path), p) for path, p in by_path if layout(_name(path), p.shape) is None]
        return MuonState(no_updates(), zeros(params), {name: jnp.zeros(p.shape, jnp.float32) for name, p in by_adam})

    def direction(grads: optax.Updates, state: MuonState, params: optax.Params, age: jax.Array):
        mu = average(state.mu, grads, one_minus_b1)
        by_path = {_name(path): g for path, g in jax.tree_util.tree_leaves_with_path(grads)}
        nu = average(state.nu, {name: jnp.square(by_path[name]) for name in state.nu}, one_minus_b2)
        momentum = unbiased_momentum(mu, grads, b1_age(state.count, age, b1_step_offset), one_minus_b1, nesterov)
        nu_scale = 1 / bias_correction(age, one_minus_b2)

        def move(path, m, p):
            name, decay = _name(path), weight_decay * p.astype(jnp.float32)
            axes = layout(name, p.shape)
            if axes is None:
                return embed_lr_ratio * (m / (jnp.sqrt(nu[name] * nu_scale) + eps) + decay)
            return _orthogonal(m, *axes) + decay

        moves = jax.tree_util.tree_map_with_path(move, momentum, params)
        return moves, MuonState(state.count, mu, nu)

    return descent(init, direction, learning_rate, 0.0, step_offset)


def newton_schulz(x_KxIxO: jax.Array) -> jax.Array:
    """Return about U V^T of each of K matrices U S V^T, by five steps of x <- a x + (b x x^T + c (x x^T)^2) x."""
    a, b, c = NEWTON_SCHULZ
    wide = x_KxIxO.shape[1] <= x_KxIxO.shape[2]
    x = x_KxIxO if wide else jnp.swapaxes(x_KxIxO, 1, 2)  # the smaller Gram matrix
    x = x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True)) + 1e-8)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = jnp.einsum("kio,kjo->kij", x, x)
        polynomial = b * gram + c * jnp.einsum("kij,kjl->kil", gram, gram)
        x = a * x + jnp.einsum("kij,kjo->kio", polynomial, x)
    return x if wide else jnp.swapaxes(x, 1, 2)


def _orthogonal(m: jax.Array, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> jax.Array:
    others = tuple(axis for axis in range(m.ndim) if axis not in inputs + outputs)
    order = (*others, *inputs, *outputs)
    fan_in, fan_out = (math.prod(m.shape[axis] for axis in axes) for axes in (inputs, outputs))
    ordered = jnp.transpose(m, order)
    x_KxIxO = newton_schulz(ordered.reshape(-1, fan_in, fan_out)) * math.sqrt(max(1.0, fan_out / fan_in))
    return jnp.transpose(x_KxIxO.reshape(ordered.shape), [order.index(axis) for axis in range(m.ndim)])


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
