"""Next-token cross-entropy in float32, in slices of the context when the logits would be large."""

import functools

import jax
import jax.numpy as jnp

from smallbatch.model import cpu_ops
from smallbatch.model.cpu_ops import on_cpu
from smallbatch.model.decoder import linear
from smallbatch.model.sharding_rules import axis_size, pad_and_constrain


def loss_sum(
    hidden_BxTxD: jax.Array,
    unembed_DxV: jax.Array,
    targets_BxT: jax.Array,
    weights_BxT: jax.Array,
    max_logits: int,
    per_sequence: bool = False,
) -> jax.Array:
    """Return the weighted sum of the cross-entropy over the targets in nats, float32; a weight of 0 omits a target.

    With `per_sequence`, the sum is over the targets of each sequence: [B].

    At most about `max_logits` logits exist on a device at a time. A longer context is split into equal slices, and the
    logits of each slice are recomputed in the backward pass. A slice contains every n-th position, so that with
    sequence sharding each device has part of every slice (if the sizes divide).
    """
    batch, context = targets_BxT.shape
    vocab_size = unembed_DxV.shape[1]
    unembed_DxV = pad_and_constrain(unembed_DxV, "embed", "vocab")
    devices = axis_size("batch") * axis_size("position") * axis_size("vocab")
    slices = _slice_count(context, batch * context * unembed_DxV.shape[1] // devices, max_logits)
    nats = functools.partial(_nats, vocab_size=vocab_size, axis=1 if per_sequence else None)
    if slices == 1:
        return nats(hidden_BxTxD, unembed_DxV, targets_BxT, weights_BxT)

    def cut(x: jax.Array) -> jax.Array:  # BxTx... -> slices x B x S x ...
        return jnp.moveaxis(x.reshape(batch, context // slices, slices, *x.shape[2:]), 2, 0)

    @jax.checkpoint
    def add(total: jax.Array, piece):
        hidden_BxSxD, targets_BxS, weights_BxS = piece
        return total + nats(hidden_BxSxD, unembed_DxV, targets_BxS, weights_BxS), None

    zero = jnp.zeros((batch,) if per_sequence else (), jnp.float32)
    total, _ = jax.lax.scan(add, zero, (cut(hidden_BxTxD), cut(targets_BxT), cut(weights_BxT)))
    return total


def _slice_count(context: int, logits: int, max_logits: int) -> int:
    """Return the smallest divisor of the context that brings the logits of a slice under the limit."""
    at_least = min(-(-logits // max_logits), context)
    return next(n for n in range(at_least, context + 1) if context % n == 0)


def _nats(hidden_BxSxD, unembed_DxV, targets_BxS, weights_BxS, vocab_size: int, axis: int | None) -> jax.Array:
    unembed_DxV = unembed_DxV.astype(hidden_BxSxD.dtype)
    logits_BxSxV = linear(hidden_BxSxD, unembed_DxV, ("embed", "vocab"), jnp.float32)
    if logits_BxSxV.shape[-1] > vocab_size:  # padding columns are not tokens
        is_token_1x1xV = jnp.arange(logits_BxSxV.shape[-1])[None, None] < vocab_size
        logits_BxSxV = jnp.where(is_token_1x1xV, logits_BxSxV, -jnp.inf)
    return jnp.sum(cross_entropy(logits_BxSxV, targets_BxS) * weights_BxS, axis)


@on_cpu(cpu_ops.cross_entropy)
def cross_entropy(logits_BxSxV: jax.Array, targets_BxS: jax.Array) -> jax.Array:
    """Return log(sum(exp(logits))) - logits[target], BxS."""
    is_target_BxSxV = jnp.arange(logits_BxSxV.shape[-1])[None, None] == targets_BxS[..., None]
    target_logit_BxS = jnp.sum(jnp.where(is_target_BxSxV, logits_BxSxV, 0.0), axis=-1)
    return jax.nn.logsumexp(logits_BxSxV, axis=-1) - target_logit_BxS
