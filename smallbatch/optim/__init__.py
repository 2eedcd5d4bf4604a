"""Optimizers as optax gradient transformations, whose decay rates can be half-lives in tokens.

Importing this package does not import JAX, so that config checks and reports can read OPTIMIZERS. Every other name is
imported from its module when it is first used (PEP 562).
"""
# ruff: noqa: F401

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from smallbatch.optim.table import OPTIMIZERS, Optimizer, markdown_table

if TYPE_CHECKING:
    from smallbatch.optim._adafactor import AdafactorState, adafactor, adafactor_power
    from smallbatch.optim._adam import AdamState, adam, scale_by_adam
    from smallbatch.optim._momentum import MomentumState, heavy_ball, lion, momentum, signum
    from smallbatch.optim._muon import MuonState, muon
    from smallbatch.optim._schedule_free import ScheduleFreeState, evaluated, schedule_free_adamw, schedule_free_sgd
    from smallbatch.optim._sgd import SgdState, sgd, sign_sgd
    from smallbatch.optim.decay_rates import Decay, bias_correction
    from smallbatch.optim.diagnostics import cosine, dot, noise_from_parts, noise_from_successive, squared_norm
    from smallbatch.optim.hyperparams import HyperParams, build
    from smallbatch.optim.schedules import learning_rate
    from smallbatch.optim.transform import average, with_learning_rate, zeros
    from smallbatch.optim.weights import apply_updates, averaged_weights, stochastic_bfloat16


def __getattr__(name: str) -> Any:
    for module in iter_modules(__path__, f"{__name__}."):
        value = vars(import_module(module.name)).get(name)
        if getattr(value, "__module__", "").startswith(__name__):
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
