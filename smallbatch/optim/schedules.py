"""Learning-rate schedules: a linear warm-up from 0, then one of five shapes, in tokens seen before the update.

Equal token positions have equal learning rates at every batch size: update number `count` (from 0) starts after
`count * tokens_per_step` tokens, and warm-up and total are given in the same unit. Nothing is rounded to whole steps.
"""

import jax
import jax.numpy as jnp

from smallbatch.optim.hypers import Hypers
from smallbatch.specs import SCHEDULES


def learning_rate(schedule: str, hypers: Hypers, count: jax.Array) -> jax.Array:
    """Return the learning rate of update `count` (0 first), a float32 scalar.

    With x the share of the steps after the warm-up that lie behind, c the final share and p the peak:
    cosine p (c + (1-c) (1 + cos(pi x)) / 2), linear p (1 - (1-c) x), constant p. With y the share of the last
    `decay_steps` that lies behind: wsd_linear p (1 - (1-c) y) (warm-up, stable, decay: Hu et al. 2024, arXiv
    2404.06395), wsd_sqrt p (1 - (1-c) sqrt(y)) (Haegele et al. 2024, arXiv 2405.18392).
    """
    step = count.astype(jnp.float32) + hypers.step_offset
    warm = step / jnp.maximum(hypers.warmup_steps, 1e-9)
    x = jnp.clip((step - hypers.warmup_steps) / jnp.maximum(hypers.total_steps - hypers.warmup_steps, 1e-9), 0, 1)
    if schedule == "cosine":
        share = hypers.final_lr_frac + (1 - hypers.final_lr_frac) * 0.5 * (1 + jnp.cos(jnp.pi * x))
    elif schedule == "linear":
        share = 1 - (1 - hypers.final_lr_frac) * x
    elif schedule == "constant":
        share = jnp.ones_like(x)
    elif schedule in ("wsd_linear", "wsd_sqrt"):
        stable_steps = hypers.total_steps - hypers.decay_steps
        y = jnp.clip((step - stable_steps) / jnp.maximum(hypers.decay_steps, 1e-9), 0, 1)
        share = 1 - (1 - hypers.final_lr_frac) * (y if schedule == "wsd_linear" else jnp.sqrt(y))
    else:
        raise ValueError(f"unknown schedule {schedule!r}: {', '.join(SCHEDULES)}")
    return hypers.peak_lr * jnp.where(step < hypers.warmup_steps, warm, share)
