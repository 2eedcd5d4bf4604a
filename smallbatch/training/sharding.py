"""Which device holds what: the one place that knows mesh axes.

Three axes: `data` splits the batch; `fsdp` splits the batch and the parameters along the model width; `tensor` splits
heads, MLP and vocabulary. Modules name their axes logically (see `smallbatch.model.gpt`), and the table below maps
them.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from smallbatch.model import gpt
from smallbatch.specs import MeshSpec, ModelSpec

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
