"""Learning-rate schedules: a linear warm-up from 0, then one of five shapes, evaluated at the midpoint of each update.

A schedule is a function of the number of tokens. With S tokens per step, update `count` (from 0) covers the tokens
from count S to (count + 1) S. Its learning rate is the schedule at the midpoint of that interval. The sum of learning
rate x tokens over a run is then the midpoint rule for the integral of the schedule. Its error is of second order in the
batch size, so the mean learning rate per token is nearly independent of the batch size. At the start of the interval,
as in optax, the learning rate of the first warm-up update would be 0. At the end of the interval, that of the last
update of a decay to 0 would be 0. Warm-up and decay lengths are not rounded to whole steps.

The formulas use the array namespace of their arguments: float32 in the compiled step, float64 numpy in a plan.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smallbatch.optim.hyperparams import HyperParams

# Learning rate / peak after the warm-up. x: completed fraction of the steps after the warm-up; y: completed fraction
# of the last `decay_steps`; final: final_lr_frac; xp: numpy or jax.numpy.
SCHEDULES = {
    "cosine": lambda x, y, final, xp: final + (1 - final) * 0.5 * (1 + xp.cos(xp.pi * x)),
    "linear": lambda x, y, final, xp: 1 - (1 - final) * x,
    "constant": lambda x, y, final, xp: xp.ones_like(x),
    # Warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395; the square root: Haegele et al. 2024, arXiv 2405.18392.
    "wsd_linear": lambda x, y, final, xp: 1 - (1 - final) * y,
    "wsd_sqrt": lambda x, y, final, xp: 1 - (1 - final) * xp.sqrt(y),
}


def lr_frac(schedule: str, step: Any, hyperparams: dict[str, Any]) -> Any:
    """Return learning rate / peak after `step` completed updates. `step` may be fractional, or an array.

    Args:
        hyperparams: warmup_steps, total_steps, decay_steps and final_lr_frac.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"Unknown schedule {schedule!r}. Use one of {', '.join(SCHEDULES)}.")
    h, xp = hyperparams, step.__array_namespace__()
    warmup, total, decay = h["warmup_steps"], h["total_steps"], h["decay_steps"]
    x = xp.clip((step - warmup) / xp.maximum(total - warmup, 1e-9), 0, 1)
    y = xp.clip((step - (total - decay)) / xp.maximum(decay, 1e-9), 0, 1)
    after_warmup = SCHEDULES[schedule](x, y, h["final_lr_frac"], xp)
    return xp.where(step < warmup, step / xp.maximum(warmup, 1e-9), after_warmup)


def learning_rate(schedule: str, hyperparams: "HyperParams", count: Any) -> Any:
    """Return the learning rate of update `count` (from 0) as a float32 scalar."""
    step = count.astype("float32") + hyperparams.step_offset + 0.5
    return hyperparams.peak_lr * lr_frac(schedule, step, hyperparams._asdict())
