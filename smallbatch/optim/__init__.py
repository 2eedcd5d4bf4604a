"""Optimizers as optax gradient transformations whose running averages can have half-lives in tokens.

Importing this package does not import JAX, so that config checks and reports can read OPTIMIZERS. Any other name is
imported from its module when it is first used (PEP 562).
"""
# ruff: noqa: F401

from importlib import import_module
from typing import TYPE_CHECKING, Any

from smallbatch.optim.table import OPTIMIZERS, Optimizer, markdown_table

if TYPE_CHECKING:
    from smallbatch.optim._adafactor import AdafactorState, adafactor, adafactor_power
    from smallbatch.optim._adam import AdamState, adam
    from smallbatch.optim._momentum import MomentumState, heavy_ball, lion, momentum, signum
    from smallbatch.optim._muon import MuonState, muon
    from smallbatch.optim._schedule_free import ScheduleFreeState, evaluated, schedule_free_adamw, schedule_free_sgd
    from smallbatch.optim._sgd import SgdState, sgd, sign_sgd
    from smallbatch.optim.descent import average, bias_correction, zeros
    from smallbatch.optim.diagnostics import cosine, dot, noise_from_parts, noise_from_successive, squared_norm
    from smallbatch.optim.hyperparams import HyperParams, build
    from smallbatch.optim.schedules import learning_rate
    from smallbatch.optim.weights import averaged_weights, rounded, stochastic_bfloat16

_MODULES = [*{entry.module for entry in OPTIMIZERS.values()}, "descent", "diagnostics", "hyperparams", "schedules"]
_MODULES += ["weights"]


def __getattr__(name: str) -> Any:
    for module in _MODULES:
        value = vars(import_module(f"{__name__}.{module}")).get(name)
        if getattr(value, "__module__", "").startswith(__name__):
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
