"""Muon: orthogonalized momentum for matrices, Adam for embeddings and the output."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smallbatch.optim._momentum import bias_corrected_momentum
from smallbatch.optim.decay_rates import DecayRate, Scalar, Tokens, decay
from smallbatch.optim.transform import LearningRate, as_float32, average, required, with_learning_rate, zeros

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: singular values converge to about 0.7 to 1.2
NEWTON_SCHULZ_STEPS = 5


class MuonState(NamedTuple):
    count: jax.Array  # shape=(), dtype=int32
    mu: optax.Updates
    nu: dict[str, jax.Array]  # by path, only for parameters that Adam updates


def matrix_axes(path: str, shape: tuple[int, ...], per_head: bool) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the input axes and the output axes of the matrices in a decoder parameter, or None for Adam.

    Each index of the other axes is a separate matrix. Jordan et al. 2024 orthogonalize the q, k, v and output matrices
    over all heads; Marek et al. 2025 orthogonalize them per head.
    """
    if "embed" in path or len(shape) < 2:
        return None
    if len(shape) == 4:  # qkv_Dx3xNxH
        return (0,), ((3,) if per_head else (2, 3))
    if len(shape) == 3:  # out_NxHxD
        return ((1,) if per_head else (0, 1)), (2,)
    return (0,), (1,)  # up_DxF, down_FxD


def muon(
    learning_rate: LearningRate,
    b1: DecayRate = None,
    b2: DecayRate = None,
    *,
    t1_tokens: Tokens = None,
    t2_tokens: Tokens = None,
    tokens_per_step: Tokens = None,
    embed_lr_ratio: Scalar,
    eps: Scalar = 1e-8,
    nesterov: bool = False,
    weight_decay: Scalar = 0.0,
    per_head: bool = False,
) -> optax.GradientTransformation:
    """Return Muon (Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks).

    Matrices: mu <- b1 mu + (1-b1) g; p -= lr (sqrt(max(1, out/in)) orthogonal(mu/(1-b1^t)) + wd p), where
    orthogonal(U S V^T) is close to U V^T. `nesterov` is as in `momentum`. Other parameters use Adam with the same b1
    and the learning rate lr x embed_lr_ratio.

    Args:
        b1, b2, t1_tokens, t2_tokens, tokens_per_step: see `scale_by_adam`.
        embed_lr_ratio: Adam's learning rate divided by `learning_rate`.
        per_head: orthogonalize q, k, v and output matrices per head; see `matrix_axes`.
    """
    mu_decay = decay("b1", b1, t1_tokens, tokens_per_step)
    nu_decay = decay("b2", b2, t2_tokens, tokens_per_step)

    def init(params):
        adam_params = {name: p for name, p in _by_path(params).items() if matrix_axes(name, p.shape, per_head) is None}
        return MuonState(jnp.zeros((), jnp.int32), zeros(params), zeros(adam_params))

    def update(updates, state, params=None):
        params, grads, count = required(params), as_float32(updates), state.count + 1
        mu = average(state.mu, grads, mu_decay.one_minus_b)
        grad_of = _by_path(grads)
        nu = average(state.nu, {name: jnp.square(grad_of[name]) for name in state.nu}, nu_decay.one_minus_b)
        momentum = bias_corrected_momentum(mu, grads, mu_decay, count, nesterov)
        nu_scale = 1 / nu_decay.bias_correction(count)

        def update_of(path, m, p):
            name = _name(path)
            decayed = weight_decay * p.astype(jnp.float32)
            axes = matrix_axes(name, p.shape, per_head)
            if axes is None:
                return embed_lr_ratio * (m / (jnp.sqrt(nu[name] * nu_scale) + eps) + decayed)
            return _orthogonal(m, *axes) + decayed

        return jax.tree_util.tree_map_with_path(update_of, momentum, params), MuonState(count, mu, nu)

    return with_learning_rate(optax.GradientTransformation(init, update), learning_rate)


def newton_schulz(x_KxIxO: jax.Array) -> jax.Array:
    """Approximate U V^T for each of K matrices U S V^T, by five steps of x <- a x + (b x x^T + c (x x^T)^2) x."""
    a, b, c = NEWTON_SCHULZ
    wide = x_KxIxO.shape[1] <= x_KxIxO.shape[2]
    x = x_KxIxO if wide else jnp.swapaxes(x_KxIxO, 1, 2)  # makes the Gram matrix the smaller one
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


def _by_path(tree) -> dict[str, jax.Array]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
