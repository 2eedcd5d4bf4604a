"""Products and activations whose gradients are written out, so that no operand is transposed in memory first.

Differentiating `x @ w` gives (dy^T x)^T, and XLA's CPU backend then copies dy into a transposed layout for it; saying
x^T dy outright avoids the copy. On a GPU or TPU the two forms compile to the same thing.
"""

from functools import partial

import jax
import jax.numpy as jnp

from smallbatch.model.sharding_rules import Axes, placed, shards

SQRT_2_OVER_PI = 0.7978845608028654
ONE_HOT_VOCABULARY = 1024  # up to this size an embedding's gradient is a product with one-hot rows


def linear(x_BxTxI: jax.Array, w_IxO: jax.Array, out_dtype=None, axes: Axes = (None, None)) -> jax.Array:
    """Return x w, BxTxO, in the dtype of x or in a wider `out_dtype`; its gradients are in the dtypes of x and w.

    axes: of w as it is stored. Where devices share its width, each gathers w for the forward pass and again for the
    backward pass, and keeps its part in between.
    """
    return _linear(x_BxTxI, placed(w_IxO, *axes), axes, jnp.dtype(out_dtype or x_BxTxI.dtype))


def _gathered(w_IxO: jax.Array, axes: Axes) -> jax.Array:
    return placed(w_IxO, *(None if axis == "embed" else axis for axis in axes))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _linear(x_BxTxI: jax.Array, w_IxO: jax.Array, axes: Axes, out_dtype):
    return jnp.einsum("bti,io->bto", x_BxTxI, _gathered(w_IxO, axes), preferred_element_type=out_dtype)


def _linear_backward(axes: Axes, out_dtype, kept, dy_BxTxO):
    del out_dtype
    x_BxTxI, w_IxO = kept
    dy_BxTxO = dy_BxTxO.astype(x_BxTxI.dtype)
    if shards("embed") > 1:  # else XLA would see that it is gathered twice, and keep it
        w_IxO = jax.lax.optimization_barrier(w_IxO)
    dx_BxTxI = jnp.einsum("bto,io->bti", dy_BxTxO, _gathered(w_IxO, axes))
    if w_IxO.shape[0] <= w_IxO.shape[1]:
        return dx_BxTxI, placed(jnp.einsum("bti,bto->io", x_BxTxI, dy_BxTxO), *axes)
    # The first operand of a product over the tokens is transposed in memory: let it be the narrower one. The barrier
    # keeps XLA from turning the product round again.
    dw_OxI = jax.lax.optimization_barrier(jnp.einsum("bto,bti->oi", dy_BxTxO, x_BxTxI))
    return dx_BxTxI, placed(dw_OxI.T, *axes)


_linear.defvjp(lambda x, w, axes, out_dtype: (_linear(x, w, axes, out_dtype), (x, w)), _linear_backward)


def split_heads(qkv_BxTxE: jax.Array, heads: int, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return q, k and v, each BxNxTxH, from one array with E = 3 x N x H (axis 2), or E = N x 3 x H (axis 3)."""
    return _split_heads(qkv_BxTxE, heads, axis)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _split_heads(qkv_BxTxE: jax.Array, heads: int, axis: int):
    batch, context, width = qkv_BxTxE.shape
    parts = (3, heads) if axis == 2 else (heads, 3)
    qkv = qkv_BxTxE.reshape(batch, context, *parts, width // (3 * heads))
    q, k, v = (jnp.swapaxes(jax.lax.index_in_dim(qkv, i, axis, keepdims=False), 1, 2) for i in range(3))
    return q, k, v


def _split_heads_backward(heads: int, axis: int, kept, grads):
    # Put together in one pass; the gradient of three slices would be three arrays padded with zeros, and their sum.
    del heads, kept
    dqkv = jnp.stack([jnp.swapaxes(g, 1, 2) for g in grads], axis=axis)
    return (dqkv.reshape(*dqkv.shape[:2], -1),)


_split_heads.defvjp(lambda qkv, heads, axis: (_split_heads(qkv, heads, axis), None), _split_heads_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Return x Phi(x) in its tanh form (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
    return 0.5 * x * (1 + jnp.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)))


def _gelu_backward(x, dy):
    x2 = x * x
    tanh = jnp.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x2))
    slope = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * SQRT_2_OVER_PI * (1 + 3 * 0.044715 * x2)
    # The barrier has the product computed once, in x's layout, instead of inside each of the two products that use it.
    return (jax.lax.optimization_barrier(dy * slope),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@jax.custom_vjp
def embed(table_VxD: jax.Array, tokens_BxT: jax.Array) -> jax.Array:
    """Return the table's rows for the tokens, BxTxD."""
    return table_VxD[tokens_BxT]


def _embed_backward(kept, dy_BxTxD):
    table_VxD, tokens_BxT = kept
    vocab_size = table_VxD.shape[0]
    if vocab_size <= ONE_HOT_VOCABULARY:  # a scatter is a loop over the tokens on a CPU, and atomics on a GPU
        one_hot_BxTxV = jax.nn.one_hot(tokens_BxT, vocab_size, dtype=dy_BxTxD.dtype)
        dtable = jnp.einsum("btv,btd->vd", one_hot_BxTxV, dy_BxTxD, preferred_element_type=jnp.float32)
    else:
        dtable = jnp.zeros(table_VxD.shape, jnp.float32).at[tokens_BxT].add(dy_BxTxD.astype(jnp.float32))
    return dtable.astype(table_VxD.dtype), None


embed.defvjp(lambda table, tokens: (embed(table, tokens), (table, tokens)), _embed_backward)
