"""Learning-rate schedules: a linear warm-up from 0, then one of five shapes, at the middle of each update.

A schedule is a function of the tokens seen, and an update covers an interval of them: update `count` (from 0) lies
between `count` and `count + 1` times the tokens of a step. Its learning rate is the schedule's in the middle of that
interval. So the sum of rate x tokens over a run is the midpoint rule for the integral of the schedule, which has an
error of second order in the batch size: a run of few large updates gets as much learning rate per token as one of many
small updates. The rate at the beginning of an update, which optax's schedules give where they are counted from 0,
would make the first update of a run with a warm-up 0, that is lost; the rate at the end would make the last one 0.
Nothing is rounded to whole steps.
"""

import jax
import jax.numpy as jnp

from smallbatch.optim.hypers import Hypers
from smallbatch.schedules import rate_share


def learning_rate(schedule: str, hypers: Hypers, count: jax.Array) -> jax.Array:
    """Return the learning rate of update `count` (0 first), a float32 scalar; `rate_share` has the formulas."""
    step = count.astype(jnp.float32) + hypers.step_offset + 0.5
    return hypers.peak_lr * rate_share(schedule, step, hypers._asdict(), jnp)
