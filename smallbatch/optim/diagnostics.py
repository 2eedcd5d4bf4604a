"""What gradients and updates say about themselves: norms, cosines, the gradient noise scale.

A noise scale B = tr(S) / |G|^2 compares the noise of one sequence's gradient, of covariance S, with the true gradient
G: a batch far below B sequences averages little but noise, one far above gains nothing more (McCandlish et al. 2018,
arXiv 1812.06162, section 2). Both estimators below return |G|^2 and tr(S), each unbiased. Average the two over many
updates *separately* and divide then: the ratio of a single update is useless.
"""

import jax
import jax.numpy as jnp

from smallbatch.optim.descent import Scalar, Tree


def squared_norm(tree: Tree) -> jax.Array:
    """Return the sum of the squares of everything in a pytree, float32."""
    return dot(tree, tree)


def dot(a: Tree, b: Tree) -> jax.Array:
    """Return the inner product of two pytrees, float32."""
    products = jax.tree.map(lambda x, y: jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)), a, b)
    return jax.tree.reduce(jnp.add, products, jnp.float32(0))


def cosine(a: Tree, b: Tree) -> jax.Array:
    """Return the cosine of the angle between two pytrees; NaN where one is 0, which has no direction."""
    return dot(a, b) / jnp.sqrt(squared_norm(a) * squared_norm(b))


def noise_from_parts(
    part_squared_norm: jax.Array, squared_norm: jax.Array, part_seqs: float, batch_seqs: float
) -> tuple[jax.Array, jax.Array]:
    """Return (|G|^2, tr(S)) from the gradients of one batch and of its parts: micro-batches or devices.

    E|g_B|^2 = |G|^2 + tr(S)/B at two batch sizes is two equations (McCandlish et al. 2018, appendix A.1). Assumes that
    the parts are independent samples; that holds for shuffled sequences.

    Args:
        part_squared_norm: mean over the parts of |g|^2.
        squared_norm: |g|^2 of the mean gradient.
        part_seqs, batch_seqs: sequences in a part and in the batch; the batch is larger.
    """
    signal = (batch_seqs * squared_norm - part_seqs * part_squared_norm) / (batch_seqs - part_seqs)
    noise = (part_squared_norm - squared_norm) / (1 / part_seqs - 1 / batch_seqs)
    return signal, noise


def noise_from_successive(squared_norm: jax.Array, dot_with_previous: Scalar, batch_seqs: float):
    """Return (|G|^2, tr(S)) from a gradient and its predecessor, where a batch has no parts (batch size 1).

    E<g_t, g_(t-1)> = |G|^2 and E|g_t|^2 = |G|^2 + tr(S)/B. Assumes that the true gradient does not change over one
    update. It does: by as much as the update changed the weights along high curvature. Where the learning rate is so
    high that successive gradients point back (a negative mean of the inner product), this says nothing; look at
    `update_cosine` beside it, and repeat with a lower learning rate when in doubt.
    """
    return dot_with_previous, batch_seqs * (squared_norm - dot_with_previous)
