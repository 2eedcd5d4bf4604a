"""The compiled chunk: accumulation, chunking and devices change no result, and gradients are freed early."""

import dataclasses
import re
from functools import partial
from platform import machine

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_specs import hyperparams, normal, params_of, tiny, tokens

from smallbatch import optim
from smallbatch.model import decoder
from smallbatch.model.cpu_ops import use_cpu_ops
from smallbatch.specs import MeshSpec, ModelSpec, OptimizerSpec, ProgramSpec
from smallbatch.training import eval_step
from smallbatch.training import train_step as steps
from smallbatch.training.diagnostics import Metrics
from smallbatch.training.jax_setup import compiler_options
from smallbatch.training.program import train_program

SPEC = tiny(layers=1)
ADAM, SGD, ADAFACTOR = (OptimizerSpec(name, "cosine") for name in ("adam", "sgd", "adafactor"))
HYPERS = hyperparams(peak_lr=0.03, eps=1e-3, weight_decay=0.1)
T1 = SPEC.context_tokens + 1


def start(optimizer: OptimizerSpec, model: ModelSpec = SPEC) -> steps.TrainState:
    params = params_of(model)
    return steps.TrainState(jnp.int32(0), params, optim.build(optimizer, HYPERS).init(params))


def assert_near(a, b, rtol=1e-4, atol=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def differs(a, b) -> bool:
    close = lambda x, y: np.allclose(x, y, rtol=1e-3, atol=1e-5)
    return not all(close(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_micro_batches_give_the_loss_and_gradients_of_the_whole_batch():
    batch = tokens((8, T1))
    grad = jax.jit(partial(steps.mean_loss_and_grads, SPEC, False))
    whole = grad(params_of(SPEC), batch.reshape(1, 8, T1))
    assert differs(grad(params_of(SPEC), tokens((1, 8, T1), seed=1)), whole)
    assert_near(grad(params_of(SPEC), batch.reshape(4, 2, T1)), whole)
    assert float(whole[0][0]) == pytest.approx(np.log(SPEC.vocab_size), rel=0.2)


def test_gradients_of_bfloat16_parameters_are_summed_in_float32():
    spec = tiny(layers=1, param_dtype="bfloat16")
    _, grads = jax.eval_shape(
        partial(steps.mean_loss_and_grads, spec, False), decoder.abstract_params(spec), tokens((2, 1, T1))
    )
    assert {x.dtype.name for x in jax.tree.leaves(grads)} == {"float32"}


K, B = 3, 8
CHUNK = tokens((K, 1, B, T1))


@partial(jax.jit, static_argnums=(0, 1))
def train_chunk(model, optimizer, *arguments):
    return steps.train_chunk(partial(steps.train_step, model, optimizer), *arguments)


@pytest.mark.parametrize("optimizer", [ADAM, SGD], ids=lambda o: o.name)
def test_a_chunk_equals_its_updates_one_by_one_and_may_stop_early(optimizer):
    update = jax.jit(partial(steps.train_step, SPEC, optimizer))
    states, losses = [start(optimizer)], []
    for batch in CHUNK:
        state, metrics = update(states[-1], HYPERS, batch)
        states.append(state)
        losses.append(metrics["loss"])
    assert differs(states[2].params, states[3].params)
    programs = train_chunk._cache_size()
    for updates in range(K + 1):
        state, metrics_K = train_chunk(SPEC, optimizer, start(optimizer), HYPERS, CHUNK, np.int32(updates))
        assert_near(state, states[updates])
        np.testing.assert_allclose(metrics_K["loss"], losses[:updates] + [0.0] * (K - updates), rtol=1e-5)
        assert state.step == state.opt_state.count == updates
    assert train_chunk._cache_size() <= programs + 1


def on_mesh(optimizer: OptimizerSpec, mesh_spec: MeshSpec, model: ModelSpec = SPEC):
    """Return the state and losses after a chunk on a mesh, sharded as in training."""
    program = train_program(ProgramSpec(model, optimizer, mesh_spec, "cpu", K, 1, B, B))
    put = lambda x: jax.device_put(x, program.replicated)
    state = jax.device_put(start(optimizer, model), program.state_shardings)
    return program.chunk(state, put(HYPERS), jax.device_put(CHUNK, program.tokens_sharding), put(np.int32(K)))


@pytest.mark.parametrize(
    ("optimizer", "mesh"),
    [
        (SGD, MeshSpec(8, 1, 1)),
        (ADAM, MeshSpec(1, 8, 1)),
        (ADAM, MeshSpec(1, 2, 4)),
        (ADAFACTOR, MeshSpec(1, 2, 4)),
        (SGD, MeshSpec(2, 2, 2)),
        (ADAM, MeshSpec(1, 1, 1, 8)),
        (SGD, MeshSpec(1, 1, 2, 4)),
        (ADAFACTOR, MeshSpec(2, 1, 1, 4)),
        (ADAM, MeshSpec(1, 2, 2, 2)),
    ],
    ids=lambda x: getattr(x, "name", None) or str(x),
)
def test_eight_devices_equal_one(optimizer, mesh):
    state, losses = on_mesh(optimizer, mesh)
    expected = train_chunk(SPEC, optimizer, start(optimizer), HYPERS, CHUNK, np.int32(K))
    assert differs(state.params, params_of(SPEC))
    assert_near((state, losses), expected, rtol=1e-3, atol=1e-5)
    up = state.params["blocks.0.up_DxF"]
    assert len(up.sharding.device_set) == 8
    assert up.addressable_shards[0].data.size * mesh.fsdp * mesh.tensor == up.size


def test_a_vocabulary_that_does_not_divide_is_sharded_too():
    odd = tiny(layers=1, vocab_size=67)
    state, losses = on_mesh(ADAM, MeshSpec(1, 2, 4), odd)
    expected = train_chunk(odd, ADAM, start(ADAM, odd), HYPERS, CHUNK, np.int32(K))
    assert_near((state, losses), expected, rtol=1e-3, atol=1e-5)
    for name in ("embed_VxD", "unembed_DxV"):
        for array in (state.params[name], state.opt_state.nu[name]):
            assert array.addressable_shards[0].data.size * 8 == array.size


def test_float32_products_have_the_configured_precision():
    def precisions(asked: str) -> set[str]:
        program = train_program(
            ProgramSpec(tiny(layers=1, matmul_precision=asked), ADAM, MeshSpec(1, 1, 1), "cpu", 1, 1, 1, 1)
        )
        tokens_1x1 = np.zeros((1, 1, T1), np.int32), np.ones((1, 1, T1 - 1), np.float32)
        text = program._score.lower(program.abstract_state.params, *tokens_1x1).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line and " x 1" not in line]
        return {re.search(r"precision = \[(\w+), \w+\]", line)[1] for line in products if "precision" in line}

    assert precisions("highest") == {"HIGHEST"}
    assert precisions("default") == {"DEFAULT", "HIGHEST"}  # row sums always are


def test_matrix_products_of_a_large_model_on_a_cpu_are_exact_up_to_rounding_and_deterministic():
    large = tiny(layers=1, context_tokens=256, ffn_width=2048)
    options = compiler_options("cpu", large)
    assert (options != compiler_options("cpu", SPEC)) == (machine() in ("x86_64", "AMD64"))
    params, batch = params_of(large), tokens((1, 1, 257))
    program = jax.jit(partial(steps.mean_loss_and_grads, large, False))
    found = jax.jit(partial(steps.mean_loss_and_grads, large, False), compiler_options=options)
    once, again = (jax.device_get(found(params, batch)) for _ in range(2))
    assert_near(once, program(params, batch), rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, once, again)


def test_a_gradient_above_the_maximum_norm_is_clipped_and_counted():
    clipping = dataclasses.replace(SGD, clip=True)
    update = jax.jit(partial(steps.train_step, SPEC, clipping))
    free, metrics = jax.jit(partial(steps.train_step, SPEC, SGD))(start(SGD), HYPERS, CHUNK[0])
    assert metrics.keys() == {"loss"}
    step = jax.tree.map(lambda a, b: a - b, params_of(SPEC), free.params)
    decay = jax.tree.map(lambda p: HYPERS.peak_lr * HYPERS.weight_decay * p, params_of(SPEC))
    norm = float(jnp.sqrt(optim.squared_norm(jax.tree.map(jnp.subtract, step, decay)))) / float(HYPERS.peak_lr)
    wide, metrics = update(start(SGD), HYPERS._replace(clip_norm=jnp.float32(1.01 * norm)), CHUNK[0])
    assert metrics["clipped"] == 0
    assert_near(wide.params, free.params)
    narrow, metrics = update(start(SGD), HYPERS._replace(clip_norm=jnp.float32(norm / 4)), CHUNK[0])
    assert metrics["clipped"] == 1
    expected = jax.tree.map(lambda p, s, d: p - d - (s - d) / 4, params_of(SPEC), step, decay)
    assert_near(narrow.params, expected, atol=1e-5)


def diagnosed(source: str, batch: np.ndarray, updates: int = 1) -> Metrics:
    optimizer = dataclasses.replace(SGD, diagnostics=source)
    state = steps.init_state(SPEC, optimizer, HYPERS)._replace(params=params_of(SPEC))
    chunk = np.broadcast_to(batch, (updates, *batch.shape))
    return train_chunk(SPEC, optimizer, state, HYPERS, chunk, np.int32(updates))[1]


def test_diagnostics_measure_gradients_and_updates():
    batch = CHUNK[0].reshape(4, 2, T1)
    found = {name: values[0] for name, values in diagnosed("parts", batch).items()}
    grads_of = jax.jit(partial(steps.mean_loss_and_grads, SPEC, False))
    parts = [optim.squared_norm(grads_of(params_of(SPEC), part[None])[1]) for part in batch]
    (_, _), grads = grads_of(params_of(SPEC), batch)
    square = optim.squared_norm(grads)
    signal, noise = optim.noise_from_parts(np.mean(parts), square, 2, 8)
    assert noise > 0.1 * square
    np.testing.assert_allclose(found["grad_norm"], np.sqrt(square), rtol=1e-4)
    np.testing.assert_allclose([found["grad_signal_sq"], found["grad_noise_sq"]], [signal, noise], rtol=1e-3)
    state, _ = jax.jit(partial(steps.train_step, SPEC, SGD))(start(SGD), HYPERS, batch)
    moved = jax.tree.map(lambda a, b: a - b, state.params, params_of(SPEC))
    norm, size = np.sqrt(optim.squared_norm(moved)), sum(p.size for p in moved.values())
    np.testing.assert_allclose([found["update_norm"], found["update_rms"]], [norm, norm / size**0.5], rtol=1e-3)
    assert np.isnan(found["update_cosine"])


def test_the_noise_of_one_sequence_is_estimated_from_successive_gradients():
    one = diagnosed("successive", CHUNK[0, :, :1], updates=3)
    assert np.isnan(one["grad_noise_sq"][0]) and np.isfinite(one["grad_noise_sq"][1:]).all()
    assert one["update_cosine"][1] > 0.5  # the same sequence again
    # The same sequence again has no noise, except for the update between the two.
    assert abs(one["grad_noise_sq"][1]) < 0.5 * one["grad_signal_sq"][1]


def test_the_average_of_the_weights_equals_its_formula():
    optimizer = dataclasses.replace(SGD, weight_average=True)
    state = steps.init_state(SPEC, optimizer, HYPERS)
    update, seen = jax.jit(partial(steps.train_step, SPEC, optimizer)), []
    for batch in CHUNK:
        state, _ = update(state, HYPERS, batch)
        seen.append(state.params)
    shares = 0.9 ** np.arange(K)[::-1]
    expected = jax.tree.map(lambda *ps: sum(s * p for s, p in zip(shares / shares.sum(), ps, strict=True)), *seen)
    assert differs(expected, state.params)
    assert_near(eval_step.averaged_params(HYPERS, state), expected)


def test_the_average_of_bfloat16_weights_is_evaluated_in_float32():
    model = dataclasses.replace(SPEC, param_dtype="bfloat16")
    average = {name: 1 + 1e-3 * normal(*x.shape) for name, x in decoder.abstract_params(model).items()}
    state = start(SGD, model)._replace(weight_average=jax.tree.map(lambda a: 0.1 * a, average))
    state = state._replace(step=jnp.int32(1))
    found = eval_step.averaged_params(HYPERS, state)
    assert {x.dtype.name for x in jax.tree.leaves(found)} == {"float32"}
    assert_near(found, average, rtol=1e-6)  # bfloat16 would round to 4e-3


def test_stochastic_rounding_depends_on_the_seed_alone():
    spec = tiny(layers=1, param_dtype="bfloat16")
    optimizer = dataclasses.replace(SGD, stochastic_rounding=True)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params_of(SPEC))
    update = jax.jit(partial(steps.train_step, spec, optimizer))
    after = lambda seed: update(start(SGD)._replace(params=params), HYPERS._replace(seed=jnp.uint32(seed)), CHUNK[0])[0]
    jax.tree.map(np.testing.assert_array_equal, after(0), after(0))
    assert (after(0).params["embed_VxD"] != after(1).params["embed_VxD"]).any()


def memory(optimizer: OptimizerSpec, spec: ModelSpec):
    """Return XLA's memory analysis of a chunk at batch size 1, and the bytes of the parameters."""
    state = jax.eval_shape(partial(steps.init_state, spec, optimizer), HYPERS)
    chunk = jax.jit(
        partial(steps.train_chunk, partial(steps.train_step, spec, optimizer)),
        donate_argnums=0,
        compiler_options=compiler_options("cpu", spec),
    )
    batch = jax.ShapeDtypeStruct((2, 1, 1, spec.context_tokens + 1), jnp.int32)
    with use_cpu_ops(True):  # as in the program of a run
        compiled = chunk.lower(state, HYPERS, batch, jax.ShapeDtypeStruct((), jnp.int32)).compile()
    return compiled.memory_analysis(), sum(x.size * x.dtype.itemsize for x in state.params.values())


on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="asks the CPU backend's buffer assignment")


@on_cpu
def test_sgd_at_batch_size_1_never_stores_all_gradients():
    spec = tiny(width=1024, layers=12, head_width=64, ffn_width=4096, context_tokens=128, vocab_size=1024)
    analysis, params_bytes = memory(SGD, spec)
    assert analysis.temp_size_in_bytes < 0.37 * params_bytes
    assert analysis.alias_size_in_bytes >= params_bytes


@on_cpu
def test_adafactor_stores_one_gradient_at_a_time_and_clipping_all():
    spec = tiny(width=512, layers=4, head_width=64, ffn_width=2048, context_tokens=64, vocab_size=256)
    alone, params_bytes = memory(ADAFACTOR, spec)
    clipped, _ = memory(dataclasses.replace(ADAFACTOR, clip=True), spec)
    assert alone.temp_size_in_bytes < 0.6 * params_bytes
    assert clipped.temp_size_in_bytes > 0.9 * params_bytes


@on_cpu
def test_adam_updates_parameters_and_both_averages_in_place():
    analysis, params_bytes = memory(ADAM, SPEC)
    assert analysis.alias_size_in_bytes >= 3 * params_bytes
