"""Communication between devices: known programs against arithmetic, and the training program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from model_specs import tiny

from smallbatch.specs import MeshSpec, OptimizerSpec, ProgramSpec
from smallbatch.training.program import TrainProgram
from smallbatch.training.traffic import Traffic, traffic

pytestmark = pytest.mark.slow

SPEC = tiny(layers=1, width=64, head_width=8, ffn_width=256, vocab_size=512, context_tokens=64)
PARAMS_BYTES = 4 * (4 * 64 * 64 + 2 * 64 * 256 + 2 * 512 * 64)
BY_ROWS, BY_COLUMNS, WHOLE = PartitionSpec("x"), PartitionSpec(None, "x"), PartitionSpec()


def of(f, before: PartitionSpec, after: PartitionSpec) -> tuple[Traffic, ...]:
    """Return the traffic of f on 8 x 64 float32 and 8 devices, with these input and output shardings."""
    mesh = Mesh(np.array(jax.devices()), ("x",), axis_types=(AxisType.Auto,))
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=NamedSharding(mesh, before))
    return traffic(jax.jit(f, out_shardings=NamedSharding(mesh, after)).lower(x).compile().as_text())


def test_sent_bytes_equal_those_of_a_ring_algorithm():
    assert of(lambda x: x + 1, BY_ROWS, BY_ROWS) == ()
    assert of(lambda x: x + 1, BY_ROWS, WHOLE) == (Traffic("all-gather", 1, 7 * 64 * 4, 8 * 64 * 4),)
    assert of(lambda x: x.sum(0), BY_ROWS, WHOLE) == (Traffic("all-reduce", 1, 2 * 7 * 64 * 4 // 8, 64 * 4),)
    assert of(lambda x: x + 1, BY_ROWS, BY_COLUMNS) == (Traffic("all-to-all", 1, 7 * 64 * 4 // 8, 64 * 4),)


def test_a_loop_is_counted_once_per_iteration():
    def repeated(x):
        return jax.lax.scan(lambda x, _: (x * jnp.sin(x).sum(0, keepdims=True), None), x, length=5)[0]

    assert of(repeated, BY_ROWS, BY_ROWS) == (Traffic("all-reduce", 5, 5 * 2 * 7 * 64 * 4 // 8, 64 * 4),)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("(f32[1,64]{1,0}, f32[8,64]{1,0}) all-gather-start(%p), replica_groups={{0,1,2,3,4,5,6,7}}",
         Traffic("all-gather", 1, 7 * 64 * 4, 8 * 64 * 4)),
        ("(bf16[64]{0}, bf16[64]{0}) all-reduce-start(%p, %q), replica_groups=[2,4]<=[8]",
         Traffic("all-reduce", 1, 2 * 3 * 2 * 64 * 2 // 4, 2 * 64 * 2)),
        ("f32[64]{0} reduce-scatter(%p), replica_groups=[1,8]<=[8]",
         Traffic("reduce-scatter", 1, 7 * 64 * 4, 8 * 64 * 4)),
        ("((f32[512]{0}), f32[64]{0}) reduce-scatter-start(%p), replica_groups=[1,8]<=[8]",
         Traffic("reduce-scatter", 1, 7 * 64 * 4, 8 * 64 * 4)),
        ("(f32[1,64], f32[8,64], u32[], u32[]) all-gather-start(%p), channel_id=7, replica_groups={}\n"
         "  %c = f32[8,64] all-gather(%p), channel_id=7, replica_groups={}",
         Traffic("all-gather", 1, 7 * 64 * 4, 8 * 64 * 4)),
        ("(f32[64]{0}, f32[64]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}",
         Traffic("collective-permute", 1, 64 * 4, 64 * 4)),
    ],
)  # fmt: skip
def test_an_asynchronous_collective_is_counted_once(line, expected):
    awaited = "  %b = f32[8,64]{1,0} all-gather-done(%a)\n"
    assert traffic(
        f"HloModule m, num_partitions=8\nENTRY %main (p: f32[1]) -> f32[1] {{\n  %a = {line}\n{awaited}}}\n"
    ) == (expected,)


def sent(optimizer: str, mesh: MeshSpec, accumulation: int = 1, microbatch: int = 8, **model) -> dict[str, Traffic]:
    sizes = (2, accumulation, microbatch, 8)
    spec = ProgramSpec(dataclasses.replace(SPEC, **model), OptimizerSpec(optimizer, "constant"), mesh, "cpu", *sizes)
    return {row.kind: row for row in TrainProgram(spec).traffic()}


MESHES = {
    "fsdp": MeshSpec(1, 8, 1),
    "tensor": MeshSpec(1, 1, 8),
    "fsdp and tensor": MeshSpec(2, 2, 2),
    "sequence": MeshSpec(1, 1, 1, 8),
}


@pytest.mark.parametrize("name", MESHES)
def test_the_state_of_adam_is_never_communicated(name):
    """Adam's averages are twice the parameters, so communicating them would exceed the bound."""
    sgd, adam = (sent(optimizer, MESHES[name]) for optimizer in ("sgd", "adam"))
    assert sgd and sgd.keys() == adam.keys()
    total = lambda rows: sum(row.sent_bytes for row in rows.values())
    assert total(sgd) > 0.1 * PARAMS_BYTES / 8
    assert total(adam) - total(sgd) < 0.01 * PARAMS_BYTES / 8
    assert {kind: row.largest_bytes for kind, row in adam.items()} == {k: row.largest_bytes for k, row in sgd.items()}


def test_gradients_are_reduced_once_per_update_for_any_number_of_micro_batches():
    one, four = (sent("sgd", MeshSpec(8, 1, 1), *parts) for parts in ((1, 32), (4, 8)))
    assert one.keys() == four.keys() == {"all-reduce"}
    for rows in (one, four):
        assert rows["all-reduce"].sent_bytes == pytest.approx(2 * 7 / 8 * PARAMS_BYTES, rel=0.001)


@pytest.mark.parametrize("mesh", [*MESHES.values(), MeshSpec(1, 1, 2, 4)], ids=str)
def test_weights_are_gathered_one_at_a_time_and_of_activations_only_keys_and_values(mesh):
    rows = sent("adam", mesh, microbatch=mesh.data * mesh.fsdp)
    largest_weight, keys = 4 * 512 * 64, 4 * 64 * 64
    gathered = rows["all-gather"].largest_bytes if "all-gather" in rows else 0
    assert gathered <= (largest_weight / mesh.tensor if mesh.fsdp > 1 else keys * mesh.data if mesh.sequence > 1 else 0)


@pytest.mark.parametrize("layers", [1, 2])
def test_tensor_parallelism_needs_four_sums_of_activations_per_layer(layers):
    """Shoeybi et al. 2019 (arXiv 1909.08053): two forward, two backward, and two for embedding and logits."""
    rows = sent("sgd", MeshSpec(1, 1, 8), microbatch=1, layers=layers)
    activation = 2 * 7 / 8 * 4 * 64 * 64
    assert rows.keys() == {"all-reduce"}
    assert rows["all-reduce"].sent_bytes == pytest.approx((4 * layers + 2) * activation, rel=0.05)


def test_the_loss_is_sliced_by_the_logits_per_device():
    """More slices would gather and reduce the unembedding more often."""
    whole, sliced = (
        sent("sgd", MeshSpec(1, 8, 1), max_logits=logits)["all-gather"].count for logits in (64 * 512, 64 * 512 - 1)
    )
    assert sliced > whole
