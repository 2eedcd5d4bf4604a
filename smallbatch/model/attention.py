"""Causal attention: plain JAX, cuDNN's kernel on a GPU, or the splash kernel on a TPU."""

import jax
import jax.numpy as jnp

from smallbatch.model import cpu_ops
from smallbatch.model.sharding_rules import axis_size, constrain, per_device

SPLASH_BLOCKS = (512, 256, 128)  # block sizes of the splash kernel; the largest that divides the context is used


def causal_attention(q_BxTxNxH: jax.Array, k_BxTxNxH: jax.Array, v_BxTxNxH: jax.Array, kind: str) -> jax.Array:
    """Return softmax(q k^T / sqrt(H)) v over the keys at or before each query, BxTxNxH.

    kind: xla | cudnn | splash. q and k must be RMS-normed over H: `cpu_ops` relies on scores being at most sqrt(H).
    """
    if kind == "cudnn":
        return per_device(_cudnn, "batch", None, "heads", None)(q_BxTxNxH, k_BxTxNxH, v_BxTxNxH)
    if kind == "splash":
        return per_device(_splash, "batch", None, "heads", None)(q_BxTxNxH, k_BxTxNxH, v_BxTxNxH)
    if kind != "xla":
        raise ValueError(f"unknown attention kind {kind!r}; use xla, cudnn or splash")
    if axis_size("position") > 1:  # each device has its own queries, and all keys and values
        q = constrain(q_BxTxNxH, "batch", "position", "heads", None)
        k, v = (constrain(x, "batch", None, "heads", None) for x in (k_BxTxNxH, v_BxTxNxH))
        return constrain(_causal(q, k, v), "batch", "position", "heads", None)
    return _causal_on_one_device(q_BxTxNxH, k_BxTxNxH, v_BxTxNxH)


def attention(q_BxQxNxH: jax.Array, k_BxTxNxH: jax.Array, v_BxTxNxH: jax.Array, mask_QxT: jax.Array) -> jax.Array:
    """Return softmax(q k^T / sqrt(H)) v over the keys where the mask is True, BxQxNxH; the softmax is in float32."""
    scores_BxNxQxT = product("bqnh,btnh->bnqt", q_BxQxNxH, k_BxTxNxH, jnp.float32) * q_BxQxNxH.shape[-1] ** -0.5
    scores_BxNxQxT = jnp.where(mask_QxT[None, None], scores_BxNxQxT, -jnp.inf)
    weights_BxNxQxT = jax.nn.softmax(scores_BxNxQxT).astype(q_BxQxNxH.dtype)
    return product("bnqt,btnh->bqnh", weights_BxNxQxT, v_BxTxNxH)


def product(equation: str, a: jax.Array, b: jax.Array, out_dtype=None) -> jax.Array:
    """Return jnp.einsum in `out_dtype`, by default the dtype of a.

    `jax.default_matmul_precision` applies to float32 operands. bfloat16 operands use DEFAULT precision: their product
    is the same at every precision, but products with their float32 gradients are much faster.
    """
    precision = jax.lax.Precision.DEFAULT if a.dtype == jnp.bfloat16 else None
    return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=out_dtype or a.dtype)


def _causal(q_BxTxNxH: jax.Array, k_BxTxNxH: jax.Array, v_BxTxNxH: jax.Array) -> jax.Array:
    context = q_BxTxNxH.shape[1]
    return attention(q_BxTxNxH, k_BxTxNxH, v_BxTxNxH, jnp.tril(jnp.ones((context, context), bool)))


_causal_on_one_device = cpu_ops.on_cpu(cpu_ops.causal_attention)(_causal)


def _cudnn(q_BxTxNxH: jax.Array, k_BxTxNxH: jax.Array, v_BxTxNxH: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(q_BxTxNxH, k_BxTxNxH, v_BxTxNxH, is_causal=True, implementation="cudnn")


@jax.custom_vjp
def _splash(q_BxTxNxH: jax.Array, k_BxTxNxH: jax.Array, v_BxTxNxH: jax.Array) -> jax.Array:
    return _splash_forward(q_BxTxNxH, k_BxTxNxH, v_BxTxNxH)[0]


def _splash_forward(*qkv: jax.Array):
    with _splash_precision(qkv[0]):
        return jax.vjp(_splash_kernel, *qkv)


def _splash_backward(kernel_backward, dout: jax.Array):
    with _splash_precision(dout):
        return kernel_backward(dout)


_splash.defvjp(_splash_forward, _splash_backward)


def _splash_precision(x: jax.Array):
    """Set a precision that the kernel supports: the default, or for float32 also the highest."""
    exact = x.dtype == jnp.float32 and jax.default_matmul_precision.value != "default"
    return jax.default_matmul_precision("highest" if exact else "default")


def _splash_kernel(q_BxTxNxH: jax.Array, k_BxTxNxH: jax.Array, v_BxTxNxH: jax.Array) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes, make_splash_mha_single_device
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import CausalMask, MultiHeadMask

    context, heads, head_width = q_BxTxNxH.shape[1:]
    block = next(size for size in SPLASH_BLOCKS if context % size == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    kernel = make_splash_mha_single_device(
        MultiHeadMask([CausalMask((context, context))] * heads),
        block_sizes=BlockSizes(**dict.fromkeys(names, block)),
    )
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BxTxNxH * head_width**-0.5, k_BxTxNxH, v_BxTxNxH))
    return jnp.swapaxes(jnp.asarray(jax.vmap(kernel)(q, k, v)), 1, 2)
