"""Next-token cross-entropy in float32, in slices of the context when the logits would be large."""

import functools

import jax
import jax.numpy as jnp

from smallbatch.model.cpu_ops import linear
from smallbatch.model.norm import row_sum
from smallbatch.model.sharding_rules import shards, spread


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
    unembed_DxV = spread(unembed_DxV, "embed", "vocab")
    devices = shards("batch") * shards("position") * shards("vocab")
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
    wanted = min(-(-logits // max_logits), context)
    return next(n for n in range(wanted, context + 1) if context % n == 0)


def _nats(hidden_BxSxD, unembed_DxV, targets_BxS, weights_BxS, vocab_size: int, axis: int | None) -> jax.Array:
    logits_BxSxV = linear(hidden_BxSxD, unembed_DxV.astype(hidden_BxSxD.dtype), jnp.float32, ("embed", "vocab"))
    if logits_BxSxV.shape[-1] > vocab_size:  # what was filled up is no token
        is_token_1x1xV = jnp.arange(logits_BxSxV.shape[-1])[None, None] < vocab_size
        logits_BxSxV = jnp.where(is_token_1x1xV, logits_BxSxV, -jnp.inf)
    return jnp.sum(_cross_entropy(logits_BxSxV, targets_BxS) * weights_BxS, axis)


def _is_target(logits_BxSxV: jax.Array, targets_BxS: jax.Array) -> jax.Array:
    return jnp.arange(logits_BxSxV.shape[-1])[None, None, :] == targets_BxS[..., None]


@jax.custom_vjp
def _cross_entropy(logits_BxSxV: jax.Array, targets_BxS: jax.Array) -> jax.Array:
    """Return log(sum(exp(logits))) - logits[target], BxS."""
    return _cross_entropy_forward(logits_BxSxV, targets_BxS)[0]


def _cross_entropy_forward(logits_BxSxV, targets_BxS):
    shifted_BxSxV = logits_BxSxV - jnp.max(logits_BxSxV, axis=-1, keepdims=True)
    exp_BxSxV = jnp.exp(shifted_BxSxV)
    sum_BxSx1 = row_sum(exp_BxSxV)
    target_BxSx1 = row_sum(jnp.where(_is_target(logits_BxSxV, targets_BxS), shifted_BxSxV, 0.0))
    return (jnp.log(sum_BxSx1) - target_BxSx1)[..., 0], (exp_BxSxV, sum_BxSx1, targets_BxS)


def _cross_entropy_backward(kept, dloss_BxS):
    # d loss / d logits = softmax - one_hot(target)
    exp_BxSxV, sum_BxSx1, targets_BxS = kept
    dloss_BxSx1 = dloss_BxS[..., None]
    probs_BxSxV = exp_BxSxV * (dloss_BxSx1 / sum_BxSx1)
    return jnp.where(_is_target(exp_BxSxV, targets_BxS), probs_BxSxV - dloss_BxSx1, probs_BxSxV), None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
