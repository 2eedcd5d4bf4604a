"""From a name and a set of (traced) numbers to an optax transformation."""

import optax

from smallbatch.optim.adam import adam
from smallbatch.optim.hypers import Hypers
from smallbatch.optim.schedules import learning_rate
from smallbatch.optim.sgd import sgd
from smallbatch.specs import OptimizerSpec


def build(spec: OptimizerSpec, hypers: Hypers) -> optax.GradientTransformation:
    """Return the optimizer; call it inside the compiled step, so that `hypers` are traced and not compiled in.

    Its state has a field `count`, the number of finished updates: the only step counter there is.
    """
    schedule = lambda count: learning_rate(spec.schedule, hypers, count)
    if spec.name == "adam":
        return adam(
            schedule,
            b1_complement=hypers.b1_complement,
            b2_complement=hypers.b2_complement,
            eps=hypers.eps,
            weight_decay=hypers.weight_decay,
        )
    if spec.name == "sgd":
        return sgd(schedule, weight_decay=hypers.weight_decay)
    raise ValueError(f"unknown optimizer {spec.name!r}: adam or sgd")
