"""The weights themselves: their running average, and how an update is rounded into them."""

import jax
import jax.numpy as jnp

from smallbatch.optim.descent import Scalar, Tree, bias_correction


def averaged_weights(average: Tree, age: Scalar, one_minus_b: Scalar) -> Tree:
    """Return the bias-corrected average of the weights after `age` updates: avg / (1 - b^age), float32.

    avg += (1-b)(weights - avg) from avg = 0 (`smallbatch.optim.descent.average`), after each update.
    """
    return jax.tree.map(lambda a: a / bias_correction(age, one_minus_b), average)


def rounded(params: Tree, deltas: Tree, key: jax.Array | None = None) -> Tree:
    """Return params + deltas, added in float32, in the dtype of params; with a key rounded at random, else to nearest.

    Nearest rounding drops an update below half of a weight's last bit (bfloat16: 2^-9 of it), however often it is
    repeated. Rounding up with the probability of the cut-off remainder keeps every update in the mean.
    """
    leaves, structure = jax.tree.flatten(params)
    sums = [p.astype(jnp.float32) + d for p, d in zip(leaves, structure.flatten_up_to(deltas), strict=True)]
    if key is None:
        return structure.unflatten([x.astype(p.dtype) for x, p in zip(sums, leaves, strict=True)])
    keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
    return structure.unflatten([stochastic_bfloat16(k, x) for k, x in zip(keys, sums, strict=True)])


def stochastic_bfloat16(key: jax.Array, x: jax.Array) -> jax.Array:
    """Return float32 x as one of the two bfloat16 around it, at random and unbiased; what is not finite stays.

    A bfloat16 is the upper half of a float32: add 16 random bits to it and drop the lower half.
    """
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    upper = ((bits + noise) >> 16).astype(jnp.uint16)
    return jnp.where(jnp.isfinite(x), jax.lax.bitcast_convert_type(upper, jnp.bfloat16), x.astype(jnp.bfloat16))
