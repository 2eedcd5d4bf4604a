"""Learning-rate schedules: a linear warm-up from 0, then cosine, linear or constant, in tokens seen before the update.

Equal token positions have equal learning rates at every batch size: update number `count` (from 0) starts after
`count * tokens_per_step` tokens, and warm-up and total are given in the same unit. Nothing is rounded to whole steps.
"""

import jax
import jax.numpy as jnp

from smallbatch.optim.hypers import Hypers


def learning_rate(schedule: str, hypers: Hypers, count: jax.Array) -> jax.Array:
    """Return the learning rate of update `count` (0 first), a float32 scalar.

    With x the share of the steps after the warm-up that lie behind, c the final share and p the peak:
    cosine p (c + (1-c) (1 + cos(pi x)) / 2), linear p (1 - (1-c) x), constant p.
    """
    step = count.astype(jnp.float32)
    warm = step / jnp.maximum(hypers.warmup_steps, 1e-9)
    x = jnp.clip((step - hypers.warmup_steps) / jnp.maximum(hypers.total_steps - hypers.warmup_steps, 1e-9), 0, 1)
    if schedule == "cosine":
        share = hypers.final_lr_frac + (1 - hypers.final_lr_frac) * 0.5 * (1 + jnp.cos(jnp.pi * x))
    elif schedule == "linear":
        share = 1 - (1 - hypers.final_lr_frac) * x
    elif schedule == "constant":
        share = jnp.ones_like(x)
    else:
        raise ValueError(f"unknown schedule {schedule!r}: cosine, linear or constant")
    return hypers.peak_lr * jnp.where(step < hypers.warmup_steps, warm, share)
