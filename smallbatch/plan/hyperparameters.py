"""Compute the hyperparameters of an optimizer in each stage of a run, in float64.

A transfer rule converts them from the batch size at which they were tuned to that at the start of the run. If the
batch size changes during the run, b2 and the average of the weights keep their half-lives in tokens; b1 stays constant
per step unless it is set by `t1_tokens`.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smallbatch import units
from smallbatch.config import Config
from smallbatch.config.batch_schedule import LR_RULES, ScheduleStage, stages, used_tokens
from smallbatch.errors import UserError
from smallbatch.optim import OPTIMIZERS
from smallbatch.optim.schedules import lr_frac
from smallbatch.plan.transfer import Tuned, transfer

# With 1 - b below this, the bias-corrected average over at most 2^31 updates is the plain mean, and products of 1 - b
# with squared gradients underflow to 0 in float32.
MIN_ONE_MINUS_B = 1e-12


@dataclass(frozen=True)
class RunningAverage:
    """The decay of a running average, in several units."""

    name: str  # b1 | b2 | weights
    one_minus_b: float  # 1 - b
    half_life_tokens: float
    half_life_steps: float
    half_life_frac: float  # of the run


def hyperparams(config: Config, stage: ScheduleStage) -> dict[str, Any]:
    """Return the fields of `optim.HyperParams`."""
    optimizer, train = config.optimizer, config.train
    tokens_per_step = stage.batch_size * config.model.context_tokens
    tuned, weight_average = _in_stage(config, stage)
    total_steps = budget_tokens(config) / tokens_per_step
    step_offset = stage.first_tokens / tokens_per_step - stage.first_step
    found = {
        "peak_lr": tuned.peak_lr,
        "final_lr_frac": optimizer.final_lr_frac,
        "warmup_steps": warmup_tokens(config) / tokens_per_step,
        "total_steps": total_steps,
        "decay_steps": (optimizer.decay_frac or 0.0) * total_steps,
        "one_minus_b1": 1.0 if tuned.one_minus_b1 is None else tuned.one_minus_b1,
        "one_minus_b2": 1.0 if tuned.one_minus_b2 is None else tuned.one_minus_b2,
        "eps": tuned.eps,
        "weight_decay": tuned.weight_decay,
        "decay_exponent": optimizer.decay_exponent,
        "embed_lr_ratio": (optimizer.embed_lr or 0.0) / peak_lr(config),
        "interpolation": optimizer.interpolation,
        "clip_norm": optimizer.clip_norm or 0.0,
        "one_minus_weight_average_b": 1.0 if weight_average is None else weight_average,
        "step_offset": step_offset,
        "b1_step_offset": step_offset if optimizer.b1 is None else 0.0,
        "seed": train.seed,
    }
    check_float32(optimizer.name, found)
    return found


ONE_MINUS_B = {
    "one_minus_b1": "1 - b1",
    "one_minus_b2": "1 - b2",
    "one_minus_weight_average_b": "1 - b (weights)",
}
# {hyperparameter: config keys that determine it}, if not the key of the same name; for errors.
FROM_KEYS = {
    "warmup_steps": "optimizer.warmup_frac or warmup_tokens",
    "decay_steps": "optimizer.decay_frac",
    "total_steps": "train.budget_tokens",
    "one_minus_b1": "optimizer.b1 or t1_tokens",
    "one_minus_b2": "optimizer.b2 or t2_tokens",
    "one_minus_weight_average_b": "optimizer.weight_average_b or weight_average_tokens",
    "embed_lr_ratio": "optimizer.embed_lr or peak_lr",
    "step_offset": "train.batch_size_schedule",
    "b1_step_offset": "train.batch_size_schedule",
}


def check_float32(name: str, found: dict[str, Any]) -> None:
    """Raise UserError for a hyperparameter, or a product of two in an update, outside the range of float32."""
    peak_lr = found["peak_lr"]
    products = {"learning rate x weight decay": (peak_lr * found["weight_decay"], "optimizer.weight_decay or peak_lr")}
    if OPTIMIZERS[name].schedule_free:
        products["the squared learning rate, the weight in the average,"] = (peak_lr**2, "optimizer.peak_lr")
    for field, value in found.items():
        if field != "seed":
            products[ONE_MINUS_B.get(field, field)] = (value, FROM_KEYS.get(field, f"optimizer.{field}"))
    for what, (value, keys) in products.items():
        if problem := units.float32_problem(value):
            raise UserError(f"{what} is {value:.3g}, which is {problem}; change {keys}")
        if what in ONE_MINUS_B.values() and value < MIN_ONE_MINUS_B:
            raise UserError(
                f"{what} is {value:.3g} per step and must be at least {MIN_ONE_MINUS_B:g}, since smaller "
                f"values underflow in float32; use a shorter half-life ({keys})"
            )


def peak_lr(config: Config) -> float:
    """Return `optimizer.peak_lr`, or the default of the optimizer if it is unset."""
    set_lr = config.optimizer.peak_lr
    if set_lr is None:
        set_lr = OPTIMIZERS[config.optimizer.name].default_peak_lr
    assert set_lr is not None, "config.validate requires a learning rate"
    return set_lr


def budget_tokens(config: Config) -> int:
    """Return the number of training tokens: `train.budget_tokens`, rounded up to whole updates."""
    train, context = config.train, config.model.context_tokens
    return used_tokens(stages(train.batch_size, train.batch_size_schedule, context, train.budget_tokens), context)


def learning_rates(schedule: str, found: dict[str, Any], first_step: int, count: int) -> tuple[float, ...]:
    """Return the learning rates of `count` updates, each at its midpoint, after `first_step` finished updates."""
    steps = np.arange(first_step, first_step + count) + found["step_offset"] + 0.5
    return tuple((found["peak_lr"] * lr_frac(schedule, steps, found)).tolist())


def averages(config: Config, stage: ScheduleStage) -> tuple[RunningAverage, ...]:
    """Return the running averages of a stage: of the gradient (b1), of its square (b2), of the weights."""
    tuned, weight_average = _in_stage(config, stage)
    one_minus_bs = {"b1": tuned.one_minus_b1, "b2": tuned.one_minus_b2, "weights": weight_average}
    tokens_per_step = stage.batch_size * config.model.context_tokens

    def average(name: str, one_minus_b: float) -> RunningAverage:
        tokens = units.half_life_from_one_minus_b(one_minus_b, tokens_per_step)
        return RunningAverage(name, one_minus_b, tokens, tokens / tokens_per_step, tokens / budget_tokens(config))

    return tuple(average(name, value) for name, value in one_minus_bs.items() if value is not None)


def warmup_tokens(config: Config) -> float:
    """Return the length of the warm-up in tokens."""
    if config.optimizer.warmup_tokens is not None:
        return float(config.optimizer.warmup_tokens)
    return config.optimizer.warmup_frac * budget_tokens(config)


def warnings(config: Config, found: tuple[RunningAverage, ...]) -> tuple[str, ...]:
    """Return a warning for each half-life that is longer than the run."""
    keys = {"b1": "t1_tokens or b1", "b2": "t2_tokens or b2", "weights": "weight_average_tokens or weight_average_b"}
    return tuple(
        f"the half-life of {average.name} is {average.half_life_tokens:,.0f} tokens, longer than the run of "
        f"{budget_tokens(config):,}, so its average is close to the mean over the whole run; lower "
        f"optimizer.{keys[average.name]}, or raise train.budget_tokens"
        for average in found
        if average.half_life_frac > 1
    )


def transfer_text(config: Config) -> str | None:
    """Return a description of the transfer from another batch size; None without a transfer rule."""
    optimizer = config.optimizer
    if optimizer.transfer_rule is None:
        return None
    exponent = "" if optimizer.lr_exponent is None else f", learning rate x ratio^{optimizer.lr_exponent:g}"
    return (
        f"by the {optimizer.transfer_rule} rule from batch size {optimizer.tuned_at_batch_size:,}, where the peak "
        f"learning rate is {peak_lr(config):g}{exponent}; {_TRANSFERRED[optimizer.transfer_rule]}; weight decay "
        f"{'keeps its timescale 1/(lr wd) in tokens' if optimizer.transfer_keeps_tau else 'is unchanged'}"
    )


_TRANSFERRED = {
    "half_life": "b2 keeps its half-life in tokens, b1 is constant per step",
    "fixed": "b1 and b2 are constant per step",
    "sqrt": "1 - b1 and 1 - b2 x ratio, eps / sqrt(ratio)",
    "linear": "learning rate x ratio, b1 and b2 are constant per step",
}


def _in_stage(config: Config, stage: ScheduleStage) -> tuple[Tuned, float | None]:
    """Return the hyperparameters that depend on the batch size, and 1 - b of the average of the weights."""
    tuned, weight_average = _at_start(config)
    ratio = stage.batch_size / config.train.batch_size
    if ratio == 1:
        return tuned, weight_average
    b1_per_step = config.optimizer.b1 is not None
    in_stage = replace(
        tuned,
        peak_lr=tuned.peak_lr * ratio ** LR_RULES[config.train.batch_size_lr_rule],
        one_minus_b1=tuned.one_minus_b1 if b1_per_step else _stretched(tuned.one_minus_b1, ratio),
        one_minus_b2=_stretched(tuned.one_minus_b2, ratio),
    )
    return in_stage, _stretched(weight_average, ratio)


def _at_start(config: Config) -> tuple[Tuned, float | None]:
    """Return the values of `_in_stage` at `train.batch_size`: as set, or converted by the transfer rule."""
    optimizer = config.optimizer
    tokens_per_step = config.train.batch_size * config.model.context_tokens
    tuned_tokens_per_step = (optimizer.tuned_at_batch_size or config.train.batch_size) * config.model.context_tokens
    keys = OPTIMIZERS[optimizer.name].hyperparams
    tuned = Tuned(
        peak_lr(config),
        _one_minus_b(optimizer.b1, optimizer.t1_tokens, tuned_tokens_per_step) if "b1" in keys else None,
        _one_minus_b(optimizer.b2, optimizer.t2_tokens, tuned_tokens_per_step) if "b2" in keys else None,
        optimizer.eps,
        optimizer.weight_decay,
    )
    if optimizer.transfer_rule is not None:
        ratio = tokens_per_step / tuned_tokens_per_step
        tuned = transfer(optimizer.transfer_rule, tuned, ratio, optimizer.lr_exponent, optimizer.transfer_keeps_tau)
    if tuned.one_minus_b2 is not None:
        tuned = replace(tuned, one_minus_b2=_limited(tuned.one_minus_b2, optimizer.b2_min, optimizer.b2_max))
    return tuned, _one_minus_b(optimizer.weight_average_b, optimizer.weight_average_tokens, tokens_per_step)


def _one_minus_b(decay: float | None, half_life_tokens: float | None, tokens_per_step: int) -> float | None:
    if half_life_tokens is not None:
        return units.one_minus_b_from_half_life(half_life_tokens, tokens_per_step)
    return None if decay is None else 1.0 - decay


def _stretched(one_minus_b: float | None, ratio: float) -> float | None:
    """Return 1 - b^ratio, which has the same half-life in tokens at `ratio` times the batch size."""
    return one_minus_b if one_minus_b in (None, 1.0) else -math.expm1(ratio * math.log1p(-one_minus_b))


def _limited(one_minus_b: float, b_min: float | None, b_max: float | None) -> float:
    """Return 1 - b for the b nearest to the given one between a floor and a ceiling."""
    if b_min is not None:
        one_minus_b = min(one_minus_b, 1.0 - b_min)
    return one_minus_b if b_max is None else max(one_minus_b, 1.0 - b_max)
