"""The numbers of an optimizer as traced float32 scalars, so that one compiled step serves every cell of a grid."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smallbatch.optim._muon import gpt_head_layout, gpt_layout
from smallbatch.optim.schedules import learning_rate
from smallbatch.optim.table import OPTIMIZERS, optimizer_function
from smallbatch.specs import OptimizerSpec


class HyperParams(NamedTuple):
    """What may differ between runs that share a compiled program; scalars, or vectors of R lanes under vmap.

    Decays are one_minus_bs, 1 - b: b itself is too close to 1 for float32 (see `smallbatch.units`).
    """

    peak_lr: jax.Array
    final_lr_frac: jax.Array  # learning rate at the end / peak
    warmup_steps: jax.Array  # a real number: tokens of warm-up / tokens per step
    total_steps: jax.Array
    decay_steps: jax.Array  # length of the last part of a wsd schedule
    one_minus_b1: jax.Array
    one_minus_b2: jax.Array
    eps: jax.Array
    weight_decay: jax.Array
    decay_exponent: jax.Array  # c of adafactor_power
    embed_lr_ratio: jax.Array  # of muon: peak learning rate of what Adam moves / peak_lr
    interpolation: jax.Array  # a of schedule-free optimizers
    clip_norm: jax.Array  # largest norm of a gradient that is left as it is
    one_minus_weight_average_b: jax.Array
    step_offset: jax.Array  # see `smallbatch.optim.descent`; 0 unless the batch size changes during the run
    b1_step_offset: jax.Array  # of b1: 0 if b1 stays per step when the batch size changes
    seed: jax.Array  # uint32, of the weights and of stochastic rounding

    @classmethod
    def abstract(cls, sharding: jax.sharding.Sharding | None = None) -> "HyperParams":
        """Return shapes and dtypes."""
        fields = {name: jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding) for name in cls._fields}
        return cls(**fields | {"seed": jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding)})  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_floats(cls, *, seed: int, **values: float) -> "HyperParams":
        """Round float64 values to float32, once, here."""
        return cls(seed=jnp.uint32(seed), **{name: jnp.float32(value) for name, value in values.items()})


def build(spec: OptimizerSpec, hyperparams: HyperParams) -> optax.GradientTransformation:
    """Return the optimizer of a run. Call it inside the compiled step, so that `hyperparams` are traced.

    Its state has a field `count`, the number of finished updates.
    """
    if spec.name not in OPTIMIZERS:
        raise ValueError(f"Unknown optimizer {spec.name!r}. Use one of {', '.join(OPTIMIZERS)}.")
    entry = OPTIMIZERS[spec.name]
    arguments = {
        "b1": {"one_minus_b1": hyperparams.one_minus_b1},
        "b2": {"one_minus_b2": hyperparams.one_minus_b2},
        "eps": {"eps": hyperparams.eps},
        "nesterov": {"nesterov": spec.nesterov},
        "decay_exponent": {"decay_exponent": hyperparams.decay_exponent},
        "embed_lr": {"embed_lr_ratio": hyperparams.embed_lr_ratio},
        "muon_matrices": {"layout": gpt_head_layout if spec.muon_heads else gpt_layout},
        "interpolation": {"interpolation": hyperparams.interpolation},
    }
    given = {name: value for key in entry.hyperparams for name, value in arguments[key].items()}
    if entry.bias_corrected:
        given["step_offset"] = hyperparams.step_offset
        if "b1" in entry.hyperparams:
            given["b1_step_offset"] = hyperparams.b1_step_offset
    schedule = partial(learning_rate, spec.schedule, hyperparams)
    return optimizer_function(spec.name)(schedule, weight_decay=hyperparams.weight_decay, **given)
