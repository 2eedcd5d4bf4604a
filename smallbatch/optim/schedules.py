"""Learning-rate schedules: a linear warm-up from 0, then one of five shapes, evaluated at the midpoint of each update.

A schedule is a function of the number of tokens. Update `count` (from 0) covers the tokens from `count` to `count + 1`
times the tokens per step, and its learning rate is the schedule at the midpoint of that interval. The sum of learning
rate x tokens over a run is then the midpoint rule for the integral of the schedule, with an error of second order in
the batch size, so the mean learning rate per token hardly depends on the batch size. The start of the interval, as in
optax, would give the first update of a warm-up a learning rate of 0; the end would give 0 to the last update of a
schedule that decays to 0. Warm-up and decay lengths are not rounded to whole steps.
"""

import jax
import jax.numpy as jnp

from smallbatch.optim.hyperparams import HyperParams
from smallbatch.optim.schedule_shapes import rate_share


def learning_rate(schedule: str, hyperparams: HyperParams, count: jax.Array) -> jax.Array:
    """Return the learning rate of update `count` (from 0) as a float32 scalar; see `rate_share` for the formulas."""
    step = count.astype(jnp.float32) + hyperparams.step_offset + 0.5
    return hyperparams.peak_lr * rate_share(schedule, step, hyperparams._asdict(), jnp)
