"""The numbers of an optimizer in a phase of a run: what a config says, at that batch size, in float64.

Two things move them from one batch size to another: a transfer rule, from where they were tuned to where the run
starts; and, where the batch grows on the way, the rule that every average keeps its half-life in tokens.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from smallbatch import units
from smallbatch.config import Config
from smallbatch.phases import LR_RULES, Phase
from smallbatch.specs import OPTIMIZER_KEYS
from smallbatch.transfer import Tuned, transfer


@dataclass(frozen=True)
class RunningAverage:
    """A decay, in every unit it is spoken of in."""

    name: str  # b1 | b2 | weights
    complement: float  # 1 - b
    half_life_tokens: float
    half_life_steps: float
    half_life_frac: float  # of the run


def hypers(config: Config, phase: Phase) -> dict[str, Any]:
    """Return the fields of `optim.Hypers`."""
    optimizer, train = config.optimizer, config.train
    tokens_per_step = phase.batch_size * config.model.context_tokens
    tuned, weight_average = _in_phase(config, phase)
    total_steps = train.budget_tokens / tokens_per_step
    return {
        "peak_lr": tuned.peak_lr,
        "final_lr_frac": optimizer.final_lr_frac,
        "warmup_steps": warmup_tokens(config) / tokens_per_step,
        "total_steps": total_steps,
        "decay_steps": (optimizer.decay_frac or 0.0) * total_steps,
        "b1_complement": 1.0 if tuned.b1_complement is None else tuned.b1_complement,
        "b2_complement": 1.0 if tuned.b2_complement is None else tuned.b2_complement,
        "eps": tuned.eps,
        "weight_decay": optimizer.weight_decay,
        "decay_exponent": optimizer.decay_exponent,
        "embed_lr_ratio": (optimizer.embed_lr or 0.0) / optimizer.peak_lr,
        "interpolation": optimizer.interpolation,
        "clip_norm": optimizer.clip_norm or 0.0,
        "weight_average_complement": 1.0 if weight_average is None else weight_average,
        "step_offset": phase.first_tokens / tokens_per_step - phase.first_step,
        "seed": train.seed,
    }


def averages(config: Config, phase: Phase) -> tuple[RunningAverage, ...]:
    """Return the averages that there are: of the gradient (b1), of its square (b2), of the weights."""
    tuned, weight_average = _in_phase(config, phase)
    complements = {"b1": tuned.b1_complement, "b2": tuned.b2_complement, "weights": weight_average}
    tokens_per_step = phase.batch_size * config.model.context_tokens

    def average(name: str, complement: float) -> RunningAverage:
        tokens = units.half_life_from_complement(complement, tokens_per_step)
        return RunningAverage(name, complement, tokens, tokens / tokens_per_step, tokens / config.train.budget_tokens)

    return tuple(average(name, value) for name, value in complements.items() if value is not None)


def warmup_tokens(config: Config) -> float:
    """Return the length of the warm-up."""
    if config.optimizer.warmup_tokens is not None:
        return float(config.optimizer.warmup_tokens)
    return config.optimizer.warmup_frac * config.train.budget_tokens


def transfer_words(config: Config) -> str | None:
    """Say where the numbers come from, if from another batch size."""
    optimizer = config.optimizer
    if optimizer.transfer_rule is None:
        return None
    exponent = "" if optimizer.lr_exponent is None else f", learning rate x ratio^{optimizer.lr_exponent:g}"
    return (
        f"by the {optimizer.transfer_rule} rule from batch size {optimizer.tuned_at_batch_size:,}, where the peak "
        f"learning rate is {optimizer.peak_lr:g}{exponent}"
    )


def _in_phase(config: Config, phase: Phase) -> tuple[Tuned, float | None]:
    """Return what depends on the batch size, and 1 - b of the average of the weights."""
    tuned, weight_average = _at_start(config)
    ratio = phase.batch_size / config.train.batch_size
    if ratio == 1:
        return tuned, weight_average
    in_phase = Tuned(
        tuned.peak_lr * ratio ** LR_RULES[config.train.batch_size_lr_rule],
        _stretched(tuned.b1_complement, ratio),
        _stretched(tuned.b2_complement, ratio),
        tuned.eps,
    )
    return in_phase, _stretched(weight_average, ratio)


def _at_start(config: Config) -> tuple[Tuned, float | None]:
    """Return the same at `train.batch_size`: as it is set, or carried over from where it was tuned."""
    optimizer = config.optimizer
    tokens_per_step = config.train.batch_size * config.model.context_tokens
    tuned_tokens_per_step = (optimizer.tuned_at_batch_size or config.train.batch_size) * config.model.context_tokens
    keys = OPTIMIZER_KEYS[optimizer.name]
    tuned = Tuned(
        optimizer.peak_lr,
        _complement(optimizer.b1, optimizer.t1_tokens, tuned_tokens_per_step) if "b1" in keys else None,
        _complement(optimizer.b2, optimizer.t2_tokens, tuned_tokens_per_step) if "b2" in keys else None,
        optimizer.eps,
    )
    if optimizer.transfer_rule is not None:
        ratio = tokens_per_step / tuned_tokens_per_step
        tuned = transfer(optimizer.transfer_rule, tuned, ratio, optimizer.lr_exponent)
    if tuned.b2_complement is not None:
        tuned = replace(tuned, b2_complement=_limited(tuned.b2_complement, optimizer.b2_min, optimizer.b2_max))
    return tuned, _complement(optimizer.weight_average_b, optimizer.weight_average_tokens, tokens_per_step)


def _complement(decay: float | None, half_life_tokens: float | None, tokens_per_step: int) -> float | None:
    if half_life_tokens is not None:
        return units.complement_from_half_life(half_life_tokens, tokens_per_step)
    return None if decay is None else 1.0 - decay


def _stretched(complement: float | None, ratio: float) -> float | None:
    """Return 1 - b^ratio, which has the same half-life in tokens at `ratio` times the batch size."""
    return complement if complement in (None, 1.0) else -math.expm1(ratio * math.log1p(-complement))


def _limited(complement: float, b_min: float | None, b_max: float | None) -> float:
    """Return 1 - b for the b nearest to the given one between a floor and a ceiling."""
    if b_min is not None:
        complement = min(complement, 1.0 - b_min)
    return complement if b_max is None else max(complement, 1.0 - b_max)
