"""Causal attention behind one switch: plain XLA everywhere, cuDNN on a GPU, splash on a TPU.

The XLA form does what the fused kernels do, in terms that XLA's CPU backend is good at:
- it walks over blocks of queries and gives each only the keys that it may see: half of the score matrix is never
  computed;
- it needs no running maximum: q and k come out of RMSNorm, so a score is at most sqrt(H) and exp cannot overflow;
- numerator and denominator of the softmax come out of one product with [v, 1], and are divided after it;
- its backward pass keeps the exponentials and touches each T x T block twice, where differentiating softmax touches it
  about ten times.

Where devices share the positions of a sequence, each has its own queries and all keys, and walks over no blocks. A
fused kernel works on each device's own sequences and heads.
"""

from functools import partial

import jax
import jax.numpy as jnp

from smallbatch.model.norm import row_sum
from smallbatch.model.sharding_rules import on_shards, placed, shards

QUERY_BLOCK = 64  # queries handled together
MAX_BLOCKS = 4  # blocks are unrolled: more would cost compile time for little
SPLASH_BLOCKS = (512, 256, 128)  # queries and keys that splash handles together: the largest that divides the context


def causal_attention(q_BxNxTxH: jax.Array, k_BxNxTxH: jax.Array, v_BxNxTxH: jax.Array, kind: str) -> jax.Array:
    """Return softmax(q k^T / sqrt(H)) v over the keys at or before each query, BxNxTxH.

    q and k must be RMS-normed over H: `xla` relies on scores being at most sqrt(H).
    """
    if kind == "xla" and shards("position") > 1:
        return _own_queries(q_BxNxTxH, k_BxNxTxH, v_BxNxTxH)
    if kind == "xla":
        return _xla(q_BxNxTxH, k_BxNxTxH, v_BxNxTxH)
    fused = {"cudnn": _cudnn, "splash": _splash}.get(kind)
    if fused is None:
        raise ValueError(f"unknown attention {kind!r}")
    return on_shards(fused, "batch", "heads", None, None)(q_BxNxTxH, k_BxNxTxH, v_BxNxTxH)


def _blocks(context: int) -> list[tuple[int, int]]:
    size = max(QUERY_BLOCK, -(-context // MAX_BLOCKS))
    return [(start, min(start + size, context)) for start in range(0, context, size)]


def _scores(q_BxNxQxH: jax.Array, k_BxNxTxH: jax.Array) -> jax.Array:
    return jnp.einsum("bnqh,bnth->bnqt", q_BxNxQxH, k_BxNxTxH, preferred_element_type=jnp.float32)


def _exp_block(q_BxNxQxH: jax.Array, k_BxNxTxH: jax.Array) -> jax.Array:
    """Return exp(q k^T) of the last Q of T positions, 0 where the key comes after the query, in the dtype of q."""
    queries, keys = q_BxNxQxH.shape[2], k_BxNxTxH.shape[2]
    exp_BxNxQxT = jnp.exp(_scores(q_BxNxQxH, k_BxNxTxH))
    # Only the last Q keys can come after a query: the mask touches no more than them.
    seen_QxQ = jnp.tril(jnp.ones((queries, queries), jnp.float32))[None, None]
    before, diagonal = exp_BxNxQxT[..., : keys - queries], exp_BxNxQxT[..., keys - queries :] * seen_QxQ
    return jnp.concatenate([before, diagonal], axis=-1).astype(q_BxNxQxH.dtype)


def _weighted_mean(weights_BxNxQxT: jax.Array, v_BxNxTxH: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (w v / w 1, w 1): one product gives the numerators and, in its last column, the denominators."""
    v_and_one = jnp.concatenate([v_BxNxTxH, jnp.ones_like(v_BxNxTxH[..., :1])], axis=-1)
    sums = jnp.einsum("bnqt,bnth->bnqh", weights_BxNxQxT, v_and_one, preferred_element_type=jnp.float32)
    return (sums[..., :-1] / sums[..., -1:]).astype(v_BxNxTxH.dtype), sums[..., -1:]


@jax.custom_vjp
def _xla(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return _xla_forward(q, k, v)[0]


def _xla_forward(q: jax.Array, k: jax.Array, v: jax.Array):
    q = q * q.shape[-1] ** -0.5
    weights = [_exp_block(q[:, :, a:b], k[:, :, :b]) for a, b in _blocks(q.shape[2])]
    parts = [_weighted_mean(w, v[:, :, : w.shape[3]]) for w in weights]
    out, norm = (jnp.concatenate(x, axis=2) for x in zip(*parts, strict=True))
    return out, (q, k, v, weights, out, norm)


def _xla_backward(kept, dout_BxNxTxH: jax.Array):
    # With w = exp(s), p = w / sum(w):  dv = p^T do;  ds = p * (do v^T - rowsum(do * out)). The 1/sum(w) of p is folded
    # into do, so that the blocks of w are used as they were kept; q is kept with its factor 1/sqrt(H).
    q, k, v, weights, out, norm = kept
    context = q.shape[2]
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    do32 = dout_BxNxTxH.astype(jnp.float32) / norm
    delta = row_sum(do32 * out.astype(jnp.float32))
    do = do32.astype(q.dtype)
    dq, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for (a, b), w in zip(_blocks(context), weights, strict=True):
        dp = _scores(do[:, :, a:b], v[:, :, :b])
        ds = (w.astype(jnp.float32) * (dp - delta[:, :, a:b])).astype(q.dtype)
        later_keys = ((0, 0), (0, 0), (0, context - b), (0, 0))
        dq.append(product("bnqt,bnth->bnqh", ds, k[:, :, :b]))
        dk += jnp.pad(product("bnqt,bnqh->bnth", ds, q[:, :, a:b]), later_keys)
        dv += jnp.pad(product("bnqt,bnqh->bnth", w, do[:, :, a:b]), later_keys)
    dq_BxNxTxH = jnp.concatenate(dq, axis=2) * q.shape[-1] ** -0.5
    return dq_BxNxTxH.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


_xla.defvjp(_xla_forward, _xla_backward)


def _own_queries(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Return the attention of queries that lie on several devices, each of which gets all keys and values."""
    q, k, v = placed(q, "batch", "heads", "position", None), *(placed(x, "batch", "heads", None, None) for x in (k, v))
    weights_BxNxTxT = _exp_block(q * q.shape[-1] ** -0.5, k)
    return placed(_weighted_mean(weights_BxNxTxT, v)[0], "batch", "heads", "position", None)


def attend_to_cache(q_BxNx1xH: jax.Array, k_BxNxTxH: jax.Array, v_BxNxTxH: jax.Array, position) -> jax.Array:
    """Attend from one query at `position` to a cache of T keys of which those up to `position` are filled."""
    weights = jnp.exp(_scores(q_BxNx1xH * q_BxNx1xH.shape[-1] ** -0.5, k_BxNxTxH))
    filled_1x1x1xT = (jnp.arange(k_BxNxTxH.shape[2]) <= position)[None, None, None]
    weights = jnp.where(filled_1x1x1xT, weights, 0.0).astype(q_BxNx1xH.dtype)
    return _weighted_mean(weights, v_BxNxTxH)[0]


def _cudnn(q_BxNxTxH: jax.Array, k_BxNxTxH: jax.Array, v_BxNxTxH: jax.Array) -> jax.Array:
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BxNxTxH, k_BxNxTxH, v_BxNxTxH))
    out_BxTxNxH = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    return jnp.swapaxes(out_BxTxNxH, 1, 2)


@jax.custom_vjp
def _splash(q_BxNxTxH: jax.Array, k_BxNxTxH: jax.Array, v_BxNxTxH: jax.Array) -> jax.Array:
    return _splash_forward(q_BxNxTxH, k_BxNxTxH, v_BxNxTxH)[0]


def _splash_forward(*qkv: jax.Array):
    with _splash_precision(qkv[0]):
        return jax.vjp(_splash_kernel, *qkv)


def _splash_backward(kernel_backward, dout: jax.Array):
    with _splash_precision(dout):
        return kernel_backward(dout)


_splash.defvjp(_splash_forward, _splash_backward)


def _splash_precision(x: jax.Array):
    """Return the precision that the kernel's products can have: bfloat16 has one only, float32 all of it or none."""
    exact = x.dtype == jnp.float32 and jax.default_matmul_precision.value != "default"
    return jax.default_matmul_precision("highest" if exact else "default")


def _splash_kernel(q_BxNxTxH: jax.Array, k_BxNxTxH: jax.Array, v_BxNxTxH: jax.Array) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes, make_splash_mha_single_device
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import CausalMask, MultiHeadMask

    heads, context, head_width = q_BxNxTxH.shape[1:]
    block = next(size for size in SPLASH_BLOCKS if context % size == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    kernel = make_splash_mha_single_device(
        MultiHeadMask([CausalMask((context, context))] * heads),
        block_sizes=BlockSizes(**dict.fromkeys(names, block)),
    )
    return jnp.asarray(jax.vmap(kernel)(q_BxNxTxH * head_width**-0.5, k_BxNxTxH, v_BxNxTxH))
