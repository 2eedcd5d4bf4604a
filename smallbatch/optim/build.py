"""From a name and a set of (traced) numbers to an optax transformation."""

import optax

from smallbatch.optim.adafactor import adafactor, adafactor_power
from smallbatch.optim.adam import adam
from smallbatch.optim.hyperparams import HyperParams
from smallbatch.optim.momentum import heavy_ball, lion, momentum, signum
from smallbatch.optim.muon import gpt_head_layout, gpt_layout, muon
from smallbatch.optim.schedule_free import schedule_free_adamw, schedule_free_sgd
from smallbatch.optim.schedules import learning_rate
from smallbatch.optim.sgd import sgd, sign_sgd
from smallbatch.specs import OPTIMIZER_KEYS, OptimizerSpec

OPTIMIZERS = {
    "adam": adam,
    "sgd": sgd,
    "sign_sgd": sign_sgd,
    "momentum": momentum,
    "heavy_ball": heavy_ball,
    "signum": signum,
    "lion": lion,
    "muon": muon,
    "adafactor": adafactor,
    "adafactor_power": adafactor_power,
    "schedule_free_sgd": schedule_free_sgd,
    "schedule_free_adamw": schedule_free_adamw,
}
# Those that correct a bias, and so need to know how old their averages are.
AGED = ("adam", "momentum", "muon", "adafactor", "adafactor_power", "schedule_free_adamw")


def build(spec: OptimizerSpec, hyperparams: HyperParams) -> optax.GradientTransformation:
    """Return the optimizer; call it inside the compiled step, so that `hyperparams` are traced and not compiled in.

    Its state has a field `count`, the number of finished updates: the only step counter there is.
    """
    if spec.name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {spec.name!r}: {', '.join(OPTIMIZERS)}")
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
    given = {name: value for key in OPTIMIZER_KEYS[spec.name] for name, value in arguments[key].items()}
    if spec.name in AGED:
        given["step_offset"] = hyperparams.step_offset
        if "b1" in OPTIMIZER_KEYS[spec.name]:
            given["b1_step_offset"] = hyperparams.b1_step_offset
    schedule = lambda count: learning_rate(spec.schedule, hyperparams, count)
    return OPTIMIZERS[spec.name](schedule, weight_decay=hyperparams.weight_decay, **given)
