"""Attention against that of jax.nn, and causality."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
from model_specs import normal, output_and_gradients, tiny

from smallbatch.model.attention import causal_attention
from smallbatch.model.cpu_ops import MAX_BLOCKS, QUERY_BLOCK, use_cpu_ops
from smallbatch.model.sharding_rules import ShardingRules, use_rules
from smallbatch.specs import MeshSpec, OptimizerSpec, ProgramSpec
from smallbatch.training.program import TrainProgram
from smallbatch.training.sharding import make_mesh

ONE_BLOCK, MANY, GROWN = 40, 150, MAX_BLOCKS * QUERY_BLOCK + 18  # the last one has blocks larger than QUERY_BLOCK


def qkv(context: int, dtype=jnp.float32, sequences: int = 1, head_width: int = 8):
    q, k, v = normal(3, sequences, context, 2, head_width)
    normed = (x / np.sqrt((x * x).mean(-1, keepdims=True)) for x in (q, k))
    return [jnp.asarray(x, dtype) for x in (*normed, v)]


def plain(q, k, v):
    return causal_attention(q, k, v, "xla")


def on_cpu(q, k, v):
    with use_cpu_ops(True):
        return plain(q, k, v)


def reference(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def assert_equals_reference(f, context: int, sequences: int = 1, head_width: int = 8) -> None:
    inputs = qkv(context, sequences=sequences, head_width=head_width)
    dout = normal(sequences, context, 2, head_width, seed=1)
    out, grads = output_and_gradients(f, dout, *inputs)
    expected, expected_grads = output_and_gradients(reference, dout, *inputs)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 if head_width > 8 else 2e-5)


@pytest.mark.parametrize(("f", "context"), [(plain, MANY), (on_cpu, ONE_BLOCK), (on_cpu, MANY), (on_cpu, GROWN)])
def test_attention_and_its_gradients_equal_those_of_jax_nn(f, context):
    assert_equals_reference(f, context)


@pytest.mark.parametrize("f", [plain, on_cpu])
def test_bfloat16_attention_equals_float32_up_to_rounding(f):
    dout = normal(1, MANY, 2, 8, seed=1)
    out, grads = output_and_gradients(f, jnp.asarray(dout, jnp.bfloat16), *qkv(MANY, jnp.bfloat16))
    exact, exact_grads = output_and_gradients(reference, dout, *qkv(MANY))
    assert {x.dtype.name for x in (out, *grads)} == {"bfloat16"}
    np.testing.assert_allclose(out.astype(np.float32), exact, atol=0.03)
    for a, b in zip(grads, exact_grads, strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b, atol=0.02 * float(np.abs(b).max()))


@pytest.mark.parametrize("f", [plain, on_cpu])
def test_changing_a_token_changes_no_earlier_output(f):
    q, k, v = qkv(MANY)
    at = 130
    changed = [x.at[:, at].add(1.0) for x in (q, k, v)]
    before, after = (np.asarray(jax.jit(f)(*x)) for x in ((q, k, v), changed))
    np.testing.assert_array_equal(before[:, :at], after[:, :at])
    assert (before[:, at:] != after[:, at:]).any(axis=(0, 2, 3)).all()


def test_an_unknown_kind_raises():
    with pytest.raises(ValueError, match="fastest"):
        causal_attention(*qkv(4), "fastest")


@pytest.mark.parametrize("mesh", [MeshSpec(1, 1, 1, 8), MeshSpec(2, 1, 2, 2)], ids=str)
def test_splitting_positions_over_devices_leaves_attention_unchanged(mesh):
    def shared(q, k, v):
        with use_rules(ShardingRules(make_mesh(mesh))):
            return plain(q, k, v)

    assert_equals_reference(shared, 48, sequences=2, head_width=8)
    out = jax.jit(shared)(*qkv(48, sequences=2))
    assert out.addressable_shards[0].data.size * 8 == out.size


@pytest.mark.parametrize("mesh", [None, MeshSpec(2, 1, 2)], ids=str)
def test_splash_equals_the_reference_on_one_device_and_on_several(mesh, monkeypatch):
    """Pallas interprets the kernel, so this tests its arithmetic but not its compilation."""
    monkeypatch.setattr(
        kernels, "make_splash_mha_single_device", partial(kernels.make_splash_mha_single_device, interpret=True)
    )

    def splash(q, k, v):
        with use_rules(mesh and ShardingRules(make_mesh(mesh))):
            return causal_attention(q, k, v, "splash")

    assert_equals_reference(splash, 256, sequences=2, head_width=64)


@pytest.mark.parametrize("head_width", [64, 128])
def test_splash_and_its_gradients_compile_to_a_tpu_kernel(head_width):
    """This lowers to Mosaic; compiling further needs the TPU compiler."""
    inputs = qkv(1024, jnp.bfloat16, head_width=head_width)
    loss = lambda q, k, v: causal_attention(q, k, v, "splash").astype(jnp.float32).sum()
    text = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*inputs).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3  # forward, dq, dk and dv


@pytest.mark.parametrize("mesh", [MeshSpec(1, 1, 1), MeshSpec(8, 1, 1), MeshSpec(1, 8, 1), MeshSpec(2, 2, 2)], ids=str)
def test_each_device_calls_cudnn_on_its_own_shard(mesh, monkeypatch):
    """This lowers for a GPU without having one. XLA's partitioner cannot split a custom call."""
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
