"""Optax transformations whose running averages forget with a half-life in tokens."""

from smallbatch.optim.adafactor import AdafactorState, adafactor, adafactor_power
from smallbatch.optim.adam import AdamState, adam
from smallbatch.optim.build import build
from smallbatch.optim.descent import bias_correction
from smallbatch.optim.hypers import Hypers
from smallbatch.optim.momentum import MomentumState, heavy_ball, lion, momentum, signum
from smallbatch.optim.muon import MuonState, muon
from smallbatch.optim.schedules import learning_rate
from smallbatch.optim.sgd import SgdState, sgd, sign_sgd

__all__ = [
    "AdafactorState",
    "AdamState",
    "Hypers",
    "MomentumState",
    "MuonState",
    "SgdState",
    "adafactor",
    "adafactor_power",
    "adam",
    "bias_correction",
    "build",
    "heavy_ball",
    "learning_rate",
    "lion",
    "momentum",
    "muon",
    "sgd",
    "sign_sgd",
    "signum",
]
