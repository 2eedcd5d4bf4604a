"""Optax transformations whose running averages forget with a half-life in tokens."""

from smallbatch.optim.adafactor import AdafactorState, adafactor, adafactor_power
from smallbatch.optim.adam import AdamState, adam
from smallbatch.optim.build import build
from smallbatch.optim.descent import average, bias_correction, zeros
from smallbatch.optim.diagnostics import cosine, dot, noise_from_parts, noise_from_successive, squared_norm
from smallbatch.optim.hyperparams import HyperParams
from smallbatch.optim.momentum import MomentumState, heavy_ball, lion, momentum, signum
from smallbatch.optim.muon import MuonState, muon
from smallbatch.optim.schedule_free import ScheduleFreeState, evaluated, schedule_free_adamw, schedule_free_sgd
from smallbatch.optim.schedules import learning_rate
from smallbatch.optim.sgd import SgdState, sgd, sign_sgd
from smallbatch.optim.weights import averaged_weights, rounded, stochastic_bfloat16

__all__ = [
    "AdafactorState",
    "AdamState",
    "HyperParams",
    "MomentumState",
    "MuonState",
    "ScheduleFreeState",
    "SgdState",
    "adafactor",
    "adafactor_power",
    "adam",
    "average",
    "averaged_weights",
    "bias_correction",
    "build",
    "cosine",
    "dot",
    "evaluated",
    "heavy_ball",
    "learning_rate",
    "lion",
    "momentum",
    "muon",
    "noise_from_parts",
    "noise_from_successive",
    "rounded",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "sign_sgd",
    "signum",
    "squared_norm",
    "stochastic_bfloat16",
    "zeros",
]
