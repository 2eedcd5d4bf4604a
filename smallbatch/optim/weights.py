"""The running average of the weights, and rounding of updates into bfloat16 weights."""

import jax
import jax.numpy as jnp

from smallbatch.optim.decay_rates import Scalar, bias_correction
from smallbatch.optim.transform import Tree


def averaged_weights(average: Tree, step: Scalar, one_minus_b: Scalar) -> Tree:
    """Return the bias-corrected average of the weights, average / (1 - b^step), float32.

    `average` starts at 0 and is updated by `smallbatch.optim.average` after each update.
    """
    return jax.tree.map(lambda a: a / bias_correction(step, one_minus_b), average)


def apply_updates(params: Tree, deltas: Tree, key: jax.Array | None = None) -> Tree:
    """Return params + deltas in the dtype of params, rounded to nearest; with a key, stochastically to bfloat16.

    Rounding to nearest discards an update smaller than half a unit in the last place of the weight (2^-9 of the weight
    in bfloat16), even if it is repeated. Stochastic rounding is unbiased.
    """
    leaves, structure = jax.tree.flatten(params)
    sums = [p.astype(jnp.float32) + d for p, d in zip(leaves, structure.flatten_up_to(deltas), strict=True)]
    if key is None:
        return structure.unflatten([x.astype(p.dtype) for x, p in zip(sums, leaves, strict=True)])
    keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
    return structure.unflatten([stochastic_bfloat16(k, x) for k, x in zip(keys, sums, strict=True)])


def stochastic_bfloat16(key: jax.Array, x: jax.Array) -> jax.Array:
    """Round float32 x to one of its two bfloat16 neighbours at random, unbiased; infinities and NaN are unchanged.

    A bfloat16 is the upper half of a float32, so add 16 random bits and drop the lower half.
    """
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    upper = ((bits + noise) >> 16).astype(jnp.uint16)
    return jnp.where(jnp.isfinite(x), jax.lax.bitcast_convert_type(upper, jnp.bfloat16), x.astype(jnp.bfloat16))
