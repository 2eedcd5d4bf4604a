"""The hyperparameters of a run as traced scalars, and the optimizer that they define."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from smallbatch import optim
from smallbatch.optim.decay_rates import Decay
from smallbatch.optim.schedules import learning_rate
from smallbatch.optim.table import OPTIMIZERS
from smallbatch.specs import OptimizerSpec


class HyperParams(NamedTuple):
    """Hyperparameters that may differ between runs of one compiled program: scalars, or vectors over runs under vmap.

    Decay rates are given as 1 - b: b itself is too close to 1 for float32 (see `smallbatch.units`).
    """

    peak_lr: jax.Array
    final_lr_frac: jax.Array  # final learning rate / peak_lr
    warmup_steps: jax.Array  # warm-up tokens / tokens per step; may be fractional
    total_steps: jax.Array
    decay_steps: jax.Array  # length of the decay in a wsd schedule
    one_minus_b1: jax.Array
    one_minus_b2: jax.Array
    eps: jax.Array
    weight_decay: jax.Array
    decay_exponent: jax.Array  # c in adafactor_power
    embed_lr_ratio: jax.Array  # muon: Adam's learning rate / peak_lr
    interpolation: jax.Array  # a in schedule-free optimizers
    clip_norm: jax.Array  # gradients with a larger global norm are scaled down to it
    one_minus_weight_average_b: jax.Array
    step_offset: jax.Array  # effective step minus count; nonzero after the batch size has changed in a run
    b1_step_offset: jax.Array  # the same for b1: 0 if b1 is set per step
    seed: jax.Array  # uint32, for the initial weights and stochastic rounding

    @classmethod
    def abstract(cls, sharding: jax.sharding.Sharding | None = None) -> "HyperParams":
        """Return shapes and dtypes."""
        fields = {name: jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding) for name in cls._fields}
        return cls(**fields | {"seed": jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding)})  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_floats(cls, *, seed: int, **values: float) -> "HyperParams":
        """Round float64 values to float32."""
        fields: dict[str, Any] = {name: np.float32(value) for name, value in values.items()}
        fields["seed"] = np.uint32(seed)
        return cls(**fields)


def build(spec: OptimizerSpec, hyperparams: HyperParams) -> optax.GradientTransformation:
    """Return the optimizer of a run. Call it inside the compiled step, so that `hyperparams` are traced.

    Its state has a field `count`, the number of finished updates.
    """
    if spec.name not in OPTIMIZERS:
        raise ValueError(f"Unknown optimizer {spec.name!r}. Use one of {', '.join(OPTIMIZERS)}.")
    h = hyperparams  # plan/hyperparameters.py has converted half-lives in tokens to 1 - b
    arguments = {
        "b1": {"b1": Decay(h.one_minus_b1, h.b1_step_offset)},
        "b2": {"b2": Decay(h.one_minus_b2, h.step_offset)},
        "eps": {"eps": h.eps},
        "nesterov": {"nesterov": spec.nesterov},
        "decay_exponent": {"decay_exponent": h.decay_exponent, "step_offset": h.step_offset},
        "embed_lr": {"embed_lr_ratio": h.embed_lr_ratio},
        "muon_matrices": {"per_head": spec.muon_heads},
        "interpolation": {"interpolation": h.interpolation},
    }
    given = {name: value for key in OPTIMIZERS[spec.name].hyperparams for name, value in arguments[key].items()}
    schedule = partial(learning_rate, spec.schedule, h)
    return getattr(optim, spec.name)(schedule, weight_decay=h.weight_decay, **given)
