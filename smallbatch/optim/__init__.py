"""Optax transformations whose running averages forget with a half-life in tokens."""

from smallbatch.optim.adam import AdamState, adam
from smallbatch.optim.build import build
from smallbatch.optim.hypers import Hypers
from smallbatch.optim.schedules import learning_rate
from smallbatch.optim.sgd import SgdState, sgd

__all__ = ["AdamState", "Hypers", "SgdState", "adam", "build", "learning_rate", "sgd"]
