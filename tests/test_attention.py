"""Attention against jax.nn's, and against what causality says."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
from model_specs import normal, output_and_gradients, tiny

from smallbatch.model import sharding_rules as placement
from smallbatch.model.attention import MAX_BLOCKS, QUERY_BLOCK, causal_attention
from smallbatch.specs import MeshSpec, OptimizerSpec, ProgramSpec
from smallbatch.training.program import TrainProgram
from smallbatch.training.sharding import Places, make_mesh

ONE_BLOCK, MANY, GROWN = 40, 150, MAX_BLOCKS * QUERY_BLOCK + 18  # the last one has blocks larger than QUERY_BLOCK


def qkv(context: int, dtype=jnp.float32, sequences: int = 1, head_width: int = 8):
    q, k, v = normal(3, sequences, 2, context, head_width)
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


def assert_equals_reference(f, context: int, sequences: int, head_width: int) -> None:
    inputs = qkv(context, sequences=sequences, head_width=head_width)
    dout = normal(sequences, 2, context, head_width, seed=1)
    out, grads = output_and_gradients(f, dout, *inputs)
    expected, expected_grads = output_and_gradients(reference, dout, *inputs)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("mesh", [MeshSpec(1, 1, 1, 8), MeshSpec(2, 1, 2, 2)], ids=str)
def test_positions_on_several_devices_change_nothing_and_each_device_has_its_own(mesh):
    def shared(q, k, v):
        with placement.by(Places(make_mesh(mesh))):
            return ours(q, k, v)

    assert_equals_reference(shared, 48, sequences=2, head_width=8)
    out = jax.jit(shared)(*qkv(48, sequences=2))
    assert out.addressable_shards[0].data.size * 8 == out.size


@pytest.mark.parametrize("mesh", [None, MeshSpec(2, 1, 2)], ids=str)
def test_splash_equals_the_reference_also_where_devices_have_their_own_sequences_and_heads(mesh, monkeypatch):
    """Pallas plays the TPU here: the kernel's arithmetic is tested, not that a TPU can run it."""
    monkeypatch.setattr(
        kernels, "make_splash_mha_single_device", partial(kernels.make_splash_mha_single_device, interpret=True)
    )

    def splash(q, k, v):
        with placement.by(mesh and Places(make_mesh(mesh))):
            return causal_attention(q, k, v, "splash")

    assert_equals_reference(splash, 256, sequences=2, head_width=64)


@pytest.mark.parametrize("head_width", [64, 128])
def test_splash_and_its_gradients_compile_to_a_tpu_kernel(head_width):
    """Up to Mosaic, which only a TPU's own compiler turns into code."""
    inputs = qkv(1024, jnp.bfloat16, head_width=head_width)
    loss = lambda q, k, v: causal_attention(q, k, v, "splash").astype(jnp.float32).sum()
    text = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*inputs).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3  # forward, dq, dk and dv


@pytest.mark.parametrize("mesh", [MeshSpec(1, 1, 1), MeshSpec(8, 1, 1), MeshSpec(1, 8, 1), MeshSpec(2, 2, 2)], ids=str)
def test_cudnn_is_called_by_every_device_for_its_own_part(mesh, monkeypatch):
    """Lowered for a GPU that is not here: the partitioner would have to cut a custom call that it cannot look into."""
    for name, answer in (
        ("check_cudnn_version", 91500),
        ("check_compute_capability", True),
        ("is_cuda_compute_capability_equal", False),
    ):
        monkeypatch.setattr(fused_attention_stablehlo, name, lambda *_, answer=answer: answer)
    model = tiny(layers=1, width=128, head_width=64, context_tokens=128, compute_dtype="bfloat16", attention="cudnn")
    program = TrainProgram(ProgramSpec(model, OptimizerSpec("sgd", "constant"), mesh, "gpu", 1, 1, 8, 8))
    text = program.traced_chunk.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmha") == 2 and "CustomSPMDPartitioning" not in text  # forward, backward
