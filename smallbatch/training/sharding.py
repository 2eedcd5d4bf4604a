"""Meshes, and the shardings of parameters, optimizer state and batches (see `model.sharding_rules` for the rules)."""

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from smallbatch import optim
from smallbatch.errors import UserError
from smallbatch.model import decoder
from smallbatch.model.sharding_rules import DATA, MESH_AXES, RULES, ShardingRules
from smallbatch.specs import DeviceSpec, MeshSpec, ModelSpec, OptimizerSpec

# (params, tokens_AxMxT1) -> means over the batch, as `train_step.mean_loss_and_grads` returns them
LossAndGrads = Callable[[Any, jax.Array], Any]
Sequences = Callable[[int, int], np.ndarray]  # (position, n) -> int32 [n, T + 1]

# Environment variables of TPU's compiler on a machine without a TPU, also in several processes at once.
ABSENT_TPU = {
    **{"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
    **{"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "TPU_ACCELERATOR_TYPE": "v5litepod-8"},
}


@functools.cache
def devices(topology: str | None = None) -> list:
    """Return JAX's devices, or those of an absent TPU slice such as v5e:2x4, to compile for it.

    Raises:
        UserError: there is no such slice, or TPU's compiler is not installed.
    """
    if topology is None:
        return jax.devices()
    from jax.experimental import topologies

    os.environ.update({name: os.environ.get(name, value) for name, value in ABSENT_TPU.items()})
    # JAX writes programs for absent devices to its cache and cannot read them back.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **_slice_options(topology)).devices)
    except Exception as error:  # its type depends on what is missing
        reason = str(error).splitlines()[0].partition(": ")[2] or str(error)
        fix = (
            "write it as v5e:2x4, v5p:2x2x1 or tpu7x:2x2x1, with one chip or multiples of 2x2 chips, and install "
            "TPU's compiler: pip install 'smallbatch[tpu]'"
        )
        raise UserError(f"cannot compile for --topology={topology} ({reason}); {fix}") from error


def _slice_options(topology: str) -> dict[str, Any]:
    """Return the options with which TPU's compiler counts the devices of a slice as a TPU VM does."""
    options: dict[str, Any] = {}
    if "v4" in topology:  # the two cores of a chip are one device, as on v5p by default
        options["chip_config_name"] = "megacore"
    if re.search(r"[:=]1x1(x1)?$", topology):  # the default is four chips per host
        options["chips_per_host_bounds"] = (1, 1, 1)
    return options


def slice_spec(topology: str) -> DeviceSpec:
    """Return the description of an absent TPU slice."""
    absent = devices(topology)
    return DeviceSpec("tpu", len(absent), kind=absent[0].device_kind)


def make_mesh(spec: MeshSpec, topology: str | None = None) -> Mesh:
    """Return a mesh over the first data x fsdp x tensor x sequence devices."""
    first = np.array(devices(topology)[: spec.devices])
    shape = (spec.data, spec.fsdp, spec.tensor, spec.sequence)
    return Mesh(first.reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of scalars and counters: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int) -> NamedSharding:
    """Return the sharding of an array whose `axis` counts sequences."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, RULES["batch"]))


def put(values: Any, sharding: NamedSharding) -> Any:
    """Return host values, equal in every process, as arrays with this sharding. Each process fills its own devices."""

    def array(value) -> jax.Array:
        whole = np.asarray(value)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(array, values)


def staged(
    shape: tuple[int, int, int, int], sharding: NamedSharding, sequences: Sequences, first: int, updates: int
) -> jax.Array:
    """Return the batches of up to K updates on the devices, K x A x M x (T + 1). A process reads only its own part.

    sequences: (position, n) -> int32 [n, T + 1], n sequences starting at a position. first: the first position.
    """
    K, A, M, T1 = shape

    @functools.cache  # devices that share a sequence have the same rows
    def rows(start: int, stop: int) -> np.ndarray:
        part = np.zeros((K, A, stop - start, T1), np.int32)
        for k in range(updates):
            for a in range(A):
                part[k, a] = sequences(first + (k * A + a) * M + start, stop - start)
        return part

    return jax.make_array_from_callback(shape, sharding, lambda index: rows(*index[2].indices(M)[:2]))  # pyright: ignore[reportOptionalSubscript]


def average_over_data(mesh: Mesh, groups: int, loss_and_grads: LossAndGrads) -> LossAndGrads:
    """Return a function that computes each data group's share of the batch, and averages them once at the end.

    The partitioner alone would sum gradients over all devices after each micro-batch. It still splits the other mesh
    axes. groups: see `MeshSpec.data_groups`.
    """
    if groups == 1:
        return loss_and_grads

    def averaged(params, tokens_AxMxT1):
        return jax.tree.map(lambda x: jax.lax.psum(x, DATA) / groups, loss_and_grads(params, tokens_AxMxT1))

    specs = {"in_specs": (PartitionSpec(), PartitionSpec(None, DATA)), "out_specs": PartitionSpec()}
    return jax.shard_map(averaged, mesh=mesh, axis_names={DATA}, check_vma=False, **specs)


def lanes_mesh(devices: int) -> Mesh:
    """Return a mesh with one axis for vectorized runs."""
    return Mesh(np.array(jax.devices()[:devices]), ("lanes",), axis_types=(AxisType.Auto,))


def lanes_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays whose first axis counts vectorized runs."""
    return NamedSharding(mesh, PartitionSpec("lanes"))


def processes_mesh() -> Mesh:
    """Return a mesh of one device per process, for values that processes exchange."""
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    return Mesh(np.array([firsts[i] for i in sorted(firsts)]), ("processes",), axis_types=(AxisType.Auto,))


def processes_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays whose first axis counts processes."""
    return NamedSharding(mesh, PartitionSpec("processes"))


def over_lanes(mesh: Mesh, f: Callable, shared: int) -> Callable:
    """Return f(state, hyperparams, *shared) for R vectorized runs, each computed on one device.

    shared: number of arguments after the first two that all runs share.
    """
    vmapped = jax.vmap(f, in_axes=(0, 0, *[None] * shared))
    lanes, same = PartitionSpec("lanes"), PartitionSpec()
    in_specs = (lanes, lanes, *[same] * shared)
    return jax.shard_map(vmapped, mesh=mesh, in_specs=in_specs, out_specs=lanes, check_vma=False)


def param_shardings(mesh: Mesh, spec: ModelSpec) -> dict[str, NamedSharding]:
    """Return a sharding for every parameter."""
    shapes, rules = decoder.abstract_params(spec), ShardingRules(mesh)
    return {name: rules.param_sharding(axes, shapes[name].shape) for name, axes in decoder.param_axes(spec).items()}


def opt_state_shardings(mesh: Mesh, spec: ModelSpec, optimizer: OptimizerSpec) -> Any:
    """Return the shardings of an optimizer's state: averages like their parameter, all else replicated.

    Replicated arrays are small: counters, and Adafactor's rows and columns.
    """
    params, shardings = decoder.abstract_params(spec), param_shardings(mesh, spec)

    def sharding(path, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = getattr(path[-1], "key", "")
        is_average = name in params and leaf.shape == params[name].shape
        return shardings[name] if is_average else replicated(mesh)

    init = lambda hyperparams, params: optim.build(optimizer, hyperparams).init(params)
    return jax.tree_util.tree_map_with_path(sharding, jax.eval_shape(init, optim.HyperParams.abstract(), params))
