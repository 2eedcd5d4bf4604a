"""The loss against float64 log-softmax, and slices of it against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_specs import normal

from smallbatch.model.loss import loss_sum

B, T, D, V = 2, 12, 8, 50
WHOLE = 2**20


def inputs(scale: float = 1.0):
    targets = np.random.default_rng(2).integers(0, V, (B, T), np.int32)
    weights = (np.arange(B * T).reshape(B, T) % 3).astype(np.float32)  # 0, 1 and 2
    return np.float32(scale) * normal(B, T, D), normal(D, V, seed=1), targets, weights


loss = jax.jit(loss_sum, static_argnums=4)
loss_and_grads = jax.jit(jax.value_and_grad(loss_sum, argnums=(0, 1)), static_argnums=4)


def reference(hidden, unembed, targets, weights) -> float:
    logits = np.asarray(hidden, np.float64) @ np.asarray(unembed, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    nats = -np.take_along_axis(log_probs, np.asarray(targets)[..., None], -1)[..., 0]
    return float((nats * np.asarray(weights, np.float64)).sum())


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_loss_equals_float64_log_softmax_even_where_exp_would_overflow(scale):
    np.testing.assert_allclose(loss(*inputs(scale), WHOLE), reference(*inputs(scale)), rtol=2e-6)


def test_gradients_equal_softmax_minus_one_hot():
    hidden, unembed, targets, weights = inputs()
    _, ours = loss_and_grads(*inputs(), WHOLE)
    h, u = np.asarray(hidden, np.float64), np.asarray(unembed, np.float64)
    probs = np.exp(h @ u)
    probs /= probs.sum(-1, keepdims=True)
    dlogits = (probs - np.eye(V)[np.asarray(targets)]) * np.asarray(weights)[..., None]
    np.testing.assert_allclose(ours[0], dlogits @ u.T, atol=1e-5)
    np.testing.assert_allclose(ours[1], np.einsum("btd,btv->dv", h, dlogits), atol=1e-5)


@pytest.mark.parametrize("slices", [2, 5, 12])  # 5 does not divide the context: it becomes 6
def test_slices_of_the_context_give_the_loss_and_gradients_of_the_whole(slices):
    max_logits = -(-B * T * V // slices)
    cut, whole = loss_and_grads(*inputs(), max_logits), loss_and_grads(*inputs(), WHOLE)
    assert "scan" in str(jax.make_jaxpr(loss_sum, static_argnums=4)(*inputs(), max_logits))
    for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_logits", [WHOLE, B * T * V // 4])
def test_loss_per_sequence_equals_that_of_each_sequence_alone(max_logits):
    hidden, unembed, targets, weights = inputs()
    found = jax.jit(loss_sum, static_argnums=(4, 5))(hidden, unembed, targets, weights, max_logits, True)
    each = [reference(hidden[[i]], unembed, targets[[i]], weights[[i]]) for i in range(B)]
    np.testing.assert_allclose(found, each, rtol=2e-6)


def test_a_target_of_weight_zero_has_no_effect():
    hidden, unembed, targets, weights = inputs()
    other = np.where(weights == 0, (targets + 1) % V, targets)
    assert (other != targets).any()
    assert loss(hidden, unembed, other, weights, WHOLE) == loss(*inputs(), WHOLE)
    grad = np.asarray(loss_and_grads(*inputs(), WHOLE)[1][0])
    assert not grad[weights == 0].any() and grad[weights > 0].all()


def test_loss_is_float32_for_bfloat16_hidden_states():
    hidden, unembed, targets, weights = inputs()
    rounded = loss(jnp.asarray(hidden, jnp.bfloat16), unembed, targets, weights, WHOLE)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, reference(*inputs()), rtol=0.01)
