"""Rules from logical axis names to mesh axes: how parameters and activations are split over devices.

The model names the axes of its arrays. `ShardingRules` maps each name to axes of the mesh: `data` splits the batch;
`fsdp` splits the batch, and parameters along the model width; `tensor` splits heads, MLP and vocabulary; `sequence`
splits the positions of every sequence. Without active rules the functions of this module return their input unchanged.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Axes = tuple[str | None, ...]  # a logical name for each axis of an array; None: never split

MESH_AXES = DATA, FSDP, TENSOR, SEQUENCE = ("data", "fsdp", "tensor", "sequence")
RULES: dict[str | None, tuple[str, ...]] = {
    "batch": (DATA, FSDP),
    "position": (SEQUENCE,),
    "embed": (FSDP,),  # width of a stored weight
    "heads": (TENSOR,),
    "ffn": (TENSOR,),
    "vocab": (TENSOR,),
    "qkv": (),
    "head": (),
    None: (),
}


class ShardingRules:
    """The rules for one mesh. Inside a `shard_map`, its manual axes are excluded."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.splits_model = any(mesh.shape[axis] > 1 for axis in MESH_AXES if axis != DATA)

    def current_mesh(self):
        """Return the mesh, or its abstract form inside a `shard_map`."""
        abstract = jax.sharding.get_abstract_mesh()
        return self.mesh if abstract.empty else abstract

    def automatic_axes(self) -> set[str]:
        """Return the mesh axes that the partitioner splits: all, except inside a `shard_map`."""
        mesh = self.current_mesh()
        return {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}

    def axis_size(self, axis: str | None) -> int:
        """Return the number of devices over which a logical axis is split."""
        return math.prod(self.mesh.shape[name] for name in RULES[axis] if name in self.automatic_axes())

    def partition_spec(self, axes: Axes) -> PartitionSpec:
        """Return the mesh axes of each array axis."""
        automatic = self.automatic_axes()
        return PartitionSpec(*[tuple(name for name in RULES[axis] if name in automatic) or None for axis in axes])

    def param_sharding(self, axes: Axes, shape: tuple[int, ...]) -> NamedSharding:
        """Return the sharding of a stored parameter. An axis that its mesh axes do not divide evenly is not split.

        If `tensor` does not divide the vocabulary, it splits the width of both embeddings, together with `fsdp`.
        """
        rules, sizes = dict(RULES), dict(zip(axes, shape, strict=True))
        devices = lambda mesh_axes: math.prod(self.mesh.shape[name] for name in mesh_axes)
        if "vocab" in sizes and sizes["vocab"] % devices((TENSOR,)) and sizes["embed"] % devices((FSDP, TENSOR)) == 0:
            rules["embed"] = (FSDP, TENSOR)
        split = [rules[axis] if sizes[axis] % devices(rules[axis]) == 0 else () for axis in axes]
        return NamedSharding(self.mesh, PartitionSpec(*[mesh_axes or None for mesh_axes in split]))


_active: ContextVar[ShardingRules | None] = ContextVar("sharding_rules", default=None)


@contextlib.contextmanager
def use_rules(rules: ShardingRules | None) -> Iterator[None]:
    """Apply these rules to everything traced in this context."""
    token = _active.set(rules)
    try:
        yield
    finally:
        _active.reset(token)


def axis_size(axis: str) -> int:
    """Return the number of devices over which a logical axis is split; 1 without rules."""
    rules = _active.get()
    return 1 if rules is None else rules.axis_size(axis)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Return x with a sharding constraint. Without it, the partitioner gathers activations instead of weights."""
    rules = _active.get()
    if rules is None or not rules.splits_model:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(rules.current_mesh(), rules.partition_spec(axes)))


def pad_and_constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Return x, zero-padded to sizes that divide evenly over the devices, with a sharding constraint."""
    padding = [(0, -size % axis_size(axis) if axis else 0) for size, axis in zip(x.shape, axes, strict=True)]
    return constrain(jnp.pad(x, padding) if any(after for _, after in padding) else x, *axes)


def per_device(f: Callable[..., jax.Array], *axes: str | None) -> Callable[..., jax.Array]:
    """Return f applied by each device to its own part of arrays with these axes.

    The partitioner cannot split a fused kernel.
    """
    rules = _active.get()
    if rules is None or not rules.automatic_axes() or rules.mesh.size == 1:
        return f
    spec, names = rules.partition_spec(axes), rules.automatic_axes()
    return jax.shard_map(f, mesh=rules.current_mesh(), in_specs=spec, out_specs=spec, axis_names=names, check_vma=False)
