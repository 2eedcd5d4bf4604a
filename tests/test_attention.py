"""Attention against jax.nn's, and against what causality says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_specs import normal, output_and_gradients

from smallbatch.model.attention import MAX_BLOCKS, QUERY_BLOCK, causal_attention

ONE_BLOCK, MANY, GROWN = 40, 150, MAX_BLOCKS * QUERY_BLOCK + 18  # the last one has blocks larger than QUERY_BLOCK


def qkv(context: int, dtype=jnp.float32):
    q, k, v = normal(3, 1, 2, context, 8)
    normed = (x / np.sqrt((x * x).mean(-1, keepdims=True)) for x in (q, k))
    return [jnp.asarray(x, dtype) for x in (*normed, v)]


def ours(q, k, v):
    return causal_attention(q, k, v, "xla")


def reference(q, k, v):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, is_causal=True), 1, 2)


@pytest.mark.parametrize("context", [ONE_BLOCK, MANY, GROWN])
def test_attention_and_its_gradients_equal_those_of_jax_nn(context):
    inputs, dout = qkv(context), normal(1, 2, context, 8, seed=1)
    out, grads = output_and_gradients(ours, dout, *inputs)
    expected, expected_grads = output_and_gradients(reference, dout, *inputs)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_bfloat16_attention_is_as_near_to_float32_as_bfloat16_rounds():
    dout = normal(1, 2, MANY, 8, seed=1)
    out, grads = output_and_gradients(ours, jnp.asarray(dout, jnp.bfloat16), *qkv(MANY, jnp.bfloat16))
    exact, exact_grads = output_and_gradients(reference, dout, *qkv(MANY))
    assert {x.dtype.name for x in (out, *grads)} == {"bfloat16"}
    np.testing.assert_allclose(out.astype(np.float32), exact, atol=0.03)
    for a, b in zip(grads, exact_grads, strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b, atol=0.02 * float(np.abs(b).max()))


def test_changing_a_later_token_changes_no_earlier_output():
    q, k, v = qkv(MANY)
    at = 130
    changed = [x.at[:, :, at].add(1.0) for x in (q, k, v)]
    before, after = (np.asarray(jax.jit(ours)(*x)) for x in ((q, k, v), changed))
    np.testing.assert_array_equal(before[:, :, :at], after[:, :, :at])
    assert (before[:, :, at:] != after[:, :, at:]).any(axis=(0, 1, 3)).all()


def test_an_unknown_kind_raises():
    with pytest.raises(ValueError, match="fastest"):
        causal_attention(*qkv(4), "fastest")
