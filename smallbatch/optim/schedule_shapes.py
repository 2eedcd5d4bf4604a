"""Compute the shapes of learning-rate schedules, with numpy or jax.numpy.

`smallbatch.optim.schedules` evaluates them at the midpoint of each update, in float32; a plan prints the first learning
rates in float64.
"""

from types import ModuleType
from typing import Any

from smallbatch.specs import SCHEDULES


def rate_share(schedule: str, step: Any, h: dict[str, Any], xp: ModuleType) -> Any:
    """Return learning rate / peak at a point of the run.

    Let x be the completed fraction of the steps after the warm-up, y that of the last `decay_steps`, and c
    `final_lr_frac`. cosine: c + (1-c) (1 + cos(pi x)) / 2. linear: 1 - (1-c) x. constant: 1. wsd_linear: 1 - (1-c) y
    (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395). wsd_sqrt: 1 - (1-c) sqrt(y) (Haegele et al. 2024,
    arXiv 2405.18392). During the warm-up: step / warmup_steps.

    Args:
        step: completed updates, a real number.
        h: warmup_steps, total_steps, decay_steps and final_lr_frac.
        xp: numpy or jax.numpy.
    """
    warmup, total, decay, final = (h[k] for k in ("warmup_steps", "total_steps", "decay_steps", "final_lr_frac"))
    warm = step / xp.maximum(warmup, 1e-9)
    x = xp.clip((step - warmup) / xp.maximum(total - warmup, 1e-9), 0, 1)
    if schedule == "cosine":
        share = final + (1 - final) * 0.5 * (1 + xp.cos(xp.pi * x))
    elif schedule == "linear":
        share = 1 - (1 - final) * x
    elif schedule == "constant":
        share = xp.ones_like(x)
    elif schedule in ("wsd_linear", "wsd_sqrt"):
        y = xp.clip((step - (total - decay)) / xp.maximum(decay, 1e-9), 0, 1)
        share = 1 - (1 - final) * (y if schedule == "wsd_linear" else xp.sqrt(y))
    else:
        raise ValueError(f"unknown schedule {schedule!r}; use one of {', '.join(SCHEDULES)}")
    return xp.where(step < warmup, warm, share)
