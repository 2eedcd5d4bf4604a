"""Norms, cosines, and the gradient noise scale on data with a known one."""

import jax
import jax.numpy as jnp
import numpy as np
from model_specs import normal

from smallbatch import optim

TRUE = normal(40, seed=3)  # the true gradient
SIGNAL = float(np.sum(TRUE.astype(np.float64) ** 2))
SCALES = np.geomspace(0.1, 10, 40).astype(np.float32)  # standard deviations of a sequence's gradient
TRACE = float(np.sum(SCALES.astype(np.float64) ** 2))


def gradients(updates: int, sequences: int) -> np.ndarray:
    """Return gradients of single sequences, updates x sequences x parameters."""
    return TRUE + SCALES * normal(updates, sequences, 40, seed=4)


def within_four_errors(values: np.ndarray, expected: float) -> bool:
    return abs(values.mean() - expected) < 4 * values.std() / len(values) ** 0.5


def test_norms_inner_products_and_cosines():
    a, b = {"x": jnp.asarray([3.0, 0.0]), "y": jnp.asarray([4.0])}, {"x": jnp.asarray([1.0, 7.0]), "y": jnp.ones(1)}
    assert optim.squared_norm(a) == 25 and optim.dot(a, b) == 7
    np.testing.assert_allclose(optim.cosine(a, b), 7 / np.sqrt(25 * 51), rtol=1e-6)
    assert np.isnan(optim.cosine(a, jax.tree.map(jnp.zeros_like, a)))
    assert optim.squared_norm({"x": jnp.full(4096, 2.0**-8, jnp.bfloat16)}) == 4096 * 2.0**-16  # summed in float32


def test_noise_scale_from_parts_is_unbiased():
    g = gradients(4000, 8)
    parts = g.reshape(4000, 4, 2, 40).mean(2)  # 4 parts of 2 sequences
    part_squares = np.sum(parts**2, -1).mean(-1)
    signal, noise = optim.noise_from_parts(part_squares, np.sum(g.mean(1) ** 2, -1), 2, 8)
    assert within_four_errors(np.asarray(signal), SIGNAL) and within_four_errors(np.asarray(noise), TRACE)


def test_noise_scale_from_successive_gradients_is_unbiased_at_a_constant_gradient():
    g = gradients(8000, 2).mean(1)
    inner = np.sum(g[1:] * g[:-1], -1)
    signal, noise = optim.noise_from_successive(np.sum(g[1:] ** 2, -1), inner, 2)
    assert within_four_errors(np.asarray(signal), SIGNAL) and within_four_errors(np.asarray(noise), TRACE)
