"""Which device holds what: the one place that knows mesh axes.

Three axes: `data` splits the batch; `fsdp` splits the batch and the parameters along the model width; `tensor` splits
heads, MLP and vocabulary. Modules name their axes logically (see `smallbatch.model.gpt`), and the table below maps
them.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from smallbatch import optim
from smallbatch.model import gpt
from smallbatch.specs import MeshSpec, ModelSpec, OptimizerSpec

# (params, tokens_AxMxT1) -> means over the batch, as `steps.mean_loss_and_grads` returns them
LossAndGrads = Callable[[Any, jax.Array], Any]

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
MESH_AXIS = {"embed": "fsdp", "heads": "tensor", "ffn": "tensor", "vocab": "tensor", "qkv": None, "head": None}


def make_mesh(spec: MeshSpec) -> Mesh:
    """Return a mesh over the first data x fsdp x tensor devices."""
    devices = np.array(jax.devices()[: spec.devices]).reshape(spec.data, spec.fsdp, spec.tensor)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of scalars and counters: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int) -> NamedSharding:
    """Return the sharding of an array whose `axis` counts sequences."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))


def put(values: Any, place: NamedSharding) -> Any:
    """Return host values, the same in every process, as arrays on the devices of a mesh; each process fills its own."""

    def array(value) -> jax.Array:
        whole = np.asarray(value)
        return jax.make_array_from_callback(whole.shape, place, lambda index: whole[index])

    return jax.tree.map(array, values)


def average_over_data(mesh: Mesh, groups: int, loss_and_grads: LossAndGrads) -> LossAndGrads:
    """Return a function that has every group of devices along `data` work on its share, and averages once at the end.

    Left to itself, the partitioner adds the gradients up over all devices after each micro-batch. `fsdp` and `tensor`
    stay with the partitioner. groups: see `MeshSpec.data_groups`.
    """
    if groups == 1:
        return loss_and_grads

    def averaged(params, tokens_AxMxT1):
        return jax.tree.map(lambda x: jax.lax.psum(x, "data") / groups, loss_and_grads(params, tokens_AxMxT1))

    specs = {"in_specs": (PartitionSpec(), PartitionSpec(None, "data")), "out_specs": PartitionSpec()}
    return jax.shard_map(averaged, mesh=mesh, axis_names={"data"}, check_vma=False, **specs)


def lanes_mesh(devices: int) -> Mesh:
    """Return a mesh whose one axis counts lanes: runs that share a program and nothing else."""
    return Mesh(np.array(jax.devices()[:devices]), ("lanes",), axis_types=(AxisType.Auto,))


def lanes_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what has a lane on its first axis."""
    return NamedSharding(mesh, PartitionSpec("lanes"))


def processes_mesh() -> Mesh:
    """Return a mesh whose one axis counts processes, by a device of each: for what they tell each other."""
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    return Mesh(np.array([firsts[i] for i in sorted(firsts)]), ("processes",), axis_types=(AxisType.Auto,))


def processes_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what has a process on its first axis."""
    return NamedSharding(mesh, PartitionSpec("processes"))


def over_lanes(mesh: Mesh, f: Callable, shared: int) -> Callable:
    """Return f(state, hypers, *shared) for R lanes of state and hypers, those of a device on that device alone.

    shared: how many arguments after these two are the same for all lanes.
    """
    vmapped = jax.vmap(f, in_axes=(0, 0, *[None] * shared))
    lanes, same = PartitionSpec("lanes"), PartitionSpec()
    in_specs = (lanes, lanes, *[same] * shared)
    return jax.shard_map(vmapped, mesh=mesh, in_specs=in_specs, out_specs=lanes, check_vma=False)


def param_shardings(mesh: Mesh, spec: ModelSpec) -> dict[str, NamedSharding]:
    """Return a sharding for every parameter; an axis that its mesh axis does not divide stays whole."""
    shapes = gpt.abstract_params(spec)

    def sharding(name: str, axes: tuple[str, ...]) -> NamedSharding:
        mesh_axes = [MESH_AXIS[axis] for axis in axes]
        sizes = shapes[name].shape
        return NamedSharding(
            mesh,
            PartitionSpec(
                *[
                    axis if axis is not None and size % mesh.shape[axis] == 0 else None
                    for axis, size in zip(mesh_axes, sizes, strict=True)
                ]
            ),
        )

    return {name: sharding(name, axes) for name, axes in gpt.param_axes(spec).items()}


def opt_state_shardings(mesh: Mesh, spec: ModelSpec, optimizer: OptimizerSpec) -> Any:
    """Return a sharding for everything an optimizer keeps: an average lies as its parameter does, all else is copied.

    What is copied is small: counters, and Adafactor's rows and columns.
    """
    params, shardings = gpt.abstract_params(spec), param_shardings(mesh, spec)

    def sharding(path, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = getattr(path[-1], "key", "")
        is_average = name in params and leaf.shape == params[name].shape
        return shardings[name] if is_average else replicated(mesh)

    init = lambda hypers, params: optim.build(optimizer, hypers).init(params)
    return jax.tree_util.tree_map_with_path(sharding, jax.eval_shape(init, optim.Hypers.abstract(), params))
