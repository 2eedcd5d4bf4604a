"""Statistics of gradients and updates: norms, cosines, the gradient noise scale.

The noise scale B = tr(S) / |G|^2 compares the covariance S of one sequence's gradient with the true gradient G.
Below B sequences a gradient is mostly noise; far above B, more sequences help little (McCandlish et al. 2018, arXiv
1812.06162, section 2). Both estimators return unbiased |G|^2 and tr(S). Average each over many updates before you
divide: the ratio of a single update is mostly noise.
"""

import jax
import jax.numpy as jnp

from smallbatch.optim.decay_rates import Scalar
from smallbatch.optim.transform import Tree


def squared_norm(tree: Tree) -> jax.Array:
    """Return the sum of squares of a pytree, float32."""
    return dot(tree, tree)


def dot(a: Tree, b: Tree) -> jax.Array:
    """Return the inner product of two pytrees, float32."""
    products = jax.tree.map(lambda x, y: jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)), a, b)
    return jax.tree.reduce(jnp.add, products, jnp.float32(0))


def cosine(a: Tree, b: Tree) -> jax.Array:
    """Return the cosine of the angle between two pytrees; NaN if either is 0."""
    return dot(a, b) / jnp.sqrt(squared_norm(a) * squared_norm(b))


def noise_from_parts(
    part_squared_norm: jax.Array, squared_norm: jax.Array, part_seqs: float, batch_seqs: float
) -> tuple[jax.Array, jax.Array]:
    """Return (|G|^2, tr(S)) from the gradients of one batch and of its parts: micro-batches or devices.

    Solves E|g_B|^2 = |G|^2 + tr(S)/B at two batch sizes (McCandlish et al. 2018, appendix A.1). Assumes independent
    parts, which holds for shuffled sequences.

    Args:
        part_squared_norm: mean of |g|^2 over the parts.
        squared_norm: |g|^2 of the mean gradient.
        part_seqs, batch_seqs: sequences per part and per batch, part_seqs < batch_seqs.
    """
    signal = (batch_seqs * squared_norm - part_seqs * part_squared_norm) / (batch_seqs - part_seqs)
    noise = (part_squared_norm - squared_norm) / (1 / part_seqs - 1 / batch_seqs)
    return signal, noise


def noise_from_successive(squared_norm: jax.Array, dot_with_previous: Scalar, batch_seqs: float):
    """Return (|G|^2, tr(S)) from two successive gradients, for a batch that has a single part (batch size 1).

    E<g_t, g_(t-1)> = |G|^2 and E|g_t|^2 = |G|^2 + tr(S)/B if the true gradient does not change in one update. In
    practice an update changes it along directions of high curvature. If the mean inner product is negative, the
    learning rate is too high for this estimate. Check `update_cosine`, and repeat with a lower rate when in doubt.
    """
    return dot_with_previous, batch_seqs * (squared_norm - dot_with_previous)
