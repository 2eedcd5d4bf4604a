"""What makes a config valid: every rule about its keys, each with its words. `config.validate` collects them.

One idea: a key that is set and has no effect is as wrong as one out of range: its author believes otherwise.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from smallbatch.config import data_checks as config_data
from smallbatch.config import numbers as config_numbers
from smallbatch.config.batch_schedule import LR_RULES, ScheduleStage, stages
from smallbatch.config.data_checks import no_effect, unset
from smallbatch.config.transfer import FREE_EXPONENT, RULES, SQRT_OPTIMIZERS
from smallbatch.errors import UserError, did_you_mean
from smallbatch.files import paths
from smallbatch.specs import DEFAULT_PEAK_LR, OPTIMIZER_KEYS, SCHEDULES

Flat = dict[str, Any]

TYPE_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}

CHOICES = {
    "data.tokens_dtype": ("uint16", "uint32"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.compute_dtype": ("float32", "bfloat16"),
    "model.matmul_precision": ("highest", "high", "default"),
    "model.remat": ("none", "dots", "full"),
    "model.attention": ("auto", "xla", "cudnn", "splash"),
    "optimizer.name": tuple(OPTIMIZER_KEYS),
    "optimizer.schedule": SCHEDULES,
    "optimizer.transfer_rule": RULES,
    "optimizer.muon_matrices": ("whole", "heads"),
    "optimizer.rounding": ("nearest", "stochastic"),
    "train.batch_size_lr_rule": tuple(LR_RULES),
    "records.wandb": ("off", "offline", "online"),
}

RANGES: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
    "at least 1": (
        lambda x: x >= 1,
        (
            "data.validation_max_bytes",
            *("model.width", "model.layers", "model.head_width", "model.ffn_width", "model.context_tokens"),
            *("model.rope_base", "model.max_logits"),
            *("train.batch_size", "train.microbatch_size", "train.budget_tokens", "train.steps_per_dispatch"),
            *("train.log_every_tokens", "train.validate_every_tokens"),
            "optimizer.tuned_at_batch_size",
            *("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence", "mesh.cpu_devices"),
        ),
    ),
    "above 0": (
        lambda x: x > 0,
        (
            *("optimizer.peak_lr", "optimizer.t1_tokens", "optimizer.t2_tokens", "optimizer.eps"),
            *("optimizer.decay_exponent", "optimizer.embed_lr", "optimizer.clip_norm"),
            "optimizer.weight_average_tokens",
            "train.diverged_above_start_nats",
        ),
    ),
    "at least 0": (
        lambda x: x >= 0,
        (
            *("data.tokens_eod_id", "optimizer.warmup_tokens", "optimizer.weight_decay"),
            *("train.checkpoint_every_secs", "train.sample_tokens"),
        ),
    ),
    "between 0 and 1": (
        lambda x: 0 <= x <= 1,
        ("optimizer.warmup_frac", "optimizer.final_lr_frac", "optimizer.lr_exponent"),
    ),
    "at least 0 and below 1": (
        lambda x: 0 <= x < 1,
        ("optimizer.b1", "optimizer.b2", "optimizer.b2_min", "optimizer.b2_max", "optimizer.weight_average_b"),
    ),
    "above 0 and below 1": (lambda x: 0 < x < 1, ("data.validation_frac",)),
    "above 0 and at most 1": (lambda x: 0 < x <= 1, ("optimizer.decay_frac", "optimizer.interpolation")),
    "at least 0 and below 2^32": (lambda x: 0 <= x < 2**32, ("data.shuffle_seed", "train.seed")),
}

MAX_DISPATCH_TOKENS = 2**30  # 4 GiB of token ids
AVERAGE_PAIRS = {
    "b1": ("optimizer.b1", "optimizer.t1_tokens"),
    "b2": ("optimizer.b2", "optimizer.t2_tokens"),
}
KEYS_OF = {  # what a word of OPTIMIZER_KEYS stands for
    "b1": AVERAGE_PAIRS["b1"],
    "b2": (*AVERAGE_PAIRS["b2"], "optimizer.b2_min", "optimizer.b2_max"),
    "eps": ("optimizer.eps",),
    "nesterov": ("optimizer.nesterov",),
    "decay_exponent": ("optimizer.decay_exponent",),
    "embed_lr": ("optimizer.embed_lr",),
    "muon_matrices": ("optimizer.muon_matrices",),
    "interpolation": ("optimizer.interpolation",),
}
WARMUP_PAIR = ("optimizer.warmup_frac", "optimizer.warmup_tokens")
AVERAGE_OF_WEIGHTS = ("optimizer.weight_average_b", "optimizer.weight_average_tokens")


def problems(flat: Flat, defaults: Flat, types: dict[str, tuple[type, bool]]) -> list[str]:
    """Return every problem in words, one line each. flat, defaults: {'section.key': value}."""
    found = [f"unknown key {key}{did_you_mean(key, types)}" for key in flat if key not in types]
    found += [f"{key} is missing" for key in types if key not in flat]
    wrong = {key: words for key, words in _wrong_values(flat, types).items() if words}
    found += wrong.values()
    sound = {key: value for key, value in flat.items() if key in types and key not in wrong}
    for rule in (
        config_data.sources,
        config_data.tokens,
        config_data.validation_source,
        config_data.tokenizer,
        _shape,
        _peak_lr,
        _schedule,
        _warmup,
        _decay,
        _pairs,
        _unused_by_optimizer,
        _b2_limits,
        _transfer,
        _weights,
        _budget,
        _batch_growth,
        _microbatch,
        _dispatch,
    ):
        with suppress(KeyError):  # a rule about a key that is already wrong has nothing to add
            for words in rule(sound, defaults):
                found.append(words)
    return found + paths.config_problems(sound)


def _wrong_values(flat: Flat, types: dict[str, tuple[type, bool]]) -> Flat:
    """Return {key: what is wrong with its value alone, or None}."""
    ranges = {key: (words, holds) for words, (holds, keys) in RANGES.items() for key in keys}
    return {key: _wrong_value(key, flat[key], *types[key], ranges) for key in types if key in flat}


def _wrong_value(key: str, value: Any, wanted: type, optional: bool, ranges: dict) -> str | None:
    if value is None:
        return None if optional else f"{key} cannot be unset; it takes {TYPE_WORDS[wanted]}"
    fits = (int, float) if wanted is float else wanted
    if not isinstance(value, fits) or isinstance(value, bool) is not (wanted is bool):
        return f"{key} is {value!r}; it takes {TYPE_WORDS[wanted]}"
    if wanted is str and not _is_utf8(value):
        return f"{key} is {value!r}, which is not valid UTF-8; remove the lone surrogates (\\ud800 to \\udfff)"
    if wanted in (int, float) and (words := config_numbers.problem(key, value, wanted)):
        return words
    if key in CHOICES and value not in CHOICES[key]:
        return f"{key} is {value!r}; it takes {' | '.join(CHOICES[key])}{did_you_mean(value, CHOICES[key])}"
    if key in ranges and not ranges[key][1](value):
        return f"{key} is {value!r}; it must be {ranges[key][0]}"
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shape(flat: Flat, defaults: Flat) -> Iterator[str]:
    head_width, width, context = flat["model.head_width"], flat["model.width"], flat["model.context_tokens"]
    if head_width % 2:
        yield f"model.head_width is {head_width}; rotary positions need an even number"
    if width % head_width:
        yield f"model.head_width is {head_width}, which does not divide model.width, {width}"
    if context % flat["mesh.sequence"]:
        yield f"mesh.sequence is {flat['mesh.sequence']}, which does not divide model.context_tokens, {context}"


def _peak_lr(flat: Flat, defaults: Flat) -> Iterator[str]:
    name = flat["optimizer.name"]
    if flat["optimizer.peak_lr"] is None and name not in DEFAULT_PEAK_LR:
        known = ", ".join(f"{rate:g} for {other}" for other, rate in DEFAULT_PEAK_LR.items())
        yield (
            f"optimizer.peak_lr is unset, and {name} has no default (only {known}); set --config.optimizer.peak_lr "
            f"to a learning rate tuned for {name}"
        )


def _schedule(flat: Flat, defaults: Flat) -> Iterator[str]:
    key = "optimizer.final_lr_frac"
    if flat["optimizer.schedule"] == "constant" and flat[key] != defaults[key]:
        yield no_effect(key, flat[key], "optimizer.schedule constant", f"leave it at {defaults[key]!r}")


def _warmup(flat: Flat, defaults: Flat) -> Iterator[str]:
    yield from _exactly_one(flat, WARMUP_PAIR)
    warmup_tokens, budget_tokens = flat["optimizer.warmup_tokens"], flat["train.budget_tokens"]
    if warmup_tokens is not None and warmup_tokens > budget_tokens:
        yield f"optimizer.warmup_tokens is {warmup_tokens:,}, above train.budget_tokens, {budget_tokens:,}"


def _decay(flat: Flat, defaults: Flat) -> Iterator[str]:
    schedule, decay_frac = flat["optimizer.schedule"], flat["optimizer.decay_frac"]
    warmup_frac = flat["optimizer.warmup_frac"] or (flat["optimizer.warmup_tokens"] or 0) / flat["train.budget_tokens"]
    if schedule.startswith("wsd"):
        if decay_frac is None:
            yield f"optimizer.decay_frac is unset; optimizer.schedule {schedule} needs it, e.g. 0.2"
        elif warmup_frac + decay_frac > 1:
            yield f"the warm-up, {warmup_frac:g} of the budget, and optimizer.decay_frac, {decay_frac:g}, exceed it"
    elif decay_frac is not None:
        where = f"optimizer.schedule {schedule}"
        yield no_effect("optimizer.decay_frac", decay_frac, where, unset("optimizer.decay_frac"))


def _pairs(flat: Flat, defaults: Flat) -> Iterator[str]:
    for name in OPTIMIZER_KEYS[flat["optimizer.name"]]:
        if name in AVERAGE_PAIRS:
            yield from _exactly_one(flat, AVERAGE_PAIRS[name])
        if name == "embed_lr" and flat["optimizer.embed_lr"] is None:
            yield "optimizer.embed_lr is unset; optimizer.name muon needs it, e.g. the peak_lr tuned for adam"


def _unused_by_optimizer(flat: Flat, defaults: Flat) -> Iterator[str]:
    name = flat["optimizer.name"]
    for word, keys in KEYS_OF.items():
        for key in () if word in OPTIMIZER_KEYS[name] else keys:
            if key in flat and flat[key] != defaults[key]:
                fix = unset(key) if defaults[key] is None else f"leave it at {defaults[key]!r}"
                yield no_effect(key, flat[key], f"optimizer.name {name}", fix)


def _b2_limits(flat: Flat, defaults: Flat) -> Iterator[str]:
    b2, low, high = (flat[f"optimizer.{key}"] for key in ("b2", "b2_min", "b2_max"))
    for key, limit in (("optimizer.b2_min", low), ("optimizer.b2_max", high)):
        if limit is not None and b2 is not None:
            yield no_effect(key, limit, f"optimizer.b2 {b2}: it limits the decay from t2_tokens", unset(key))
    if low is not None and high is not None and low > high:
        yield f"optimizer.b2_min is {low}, above optimizer.b2_max, {high}"


def _transfer(flat: Flat, defaults: Flat) -> Iterator[str]:
    rule, tuned_at, exponent, t1_tokens = (
        flat[f"optimizer.{key}"] for key in ("transfer_rule", "tuned_at_batch_size", "lr_exponent", "t1_tokens")
    )
    keeps_tau = flat["optimizer.transfer_keeps_tau"]
    if rule is None:
        for key, value in (("optimizer.tuned_at_batch_size", tuned_at), ("optimizer.lr_exponent", exponent)):
            if value is not None:
                yield no_effect(key, value, "optimizer.transfer_rule None", unset(key))
        if keeps_tau:
            key = "optimizer.transfer_keeps_tau"
            yield no_effect(key, True, "optimizer.transfer_rule None", "leave it at False")
        return
    if rule == "sqrt" and flat["optimizer.name"] not in SQRT_OPTIMIZERS:
        yield (
            f"optimizer.transfer_rule is sqrt, which needs an optimizer that divides by the root of a second moment "
            f"({', '.join(SQRT_OPTIMIZERS)}), and optimizer.name is {flat['optimizer.name']}; use linear, fixed or "
            "half_life"
        )
    if keeps_tau and not flat["optimizer.weight_decay"]:
        yield no_effect("optimizer.transfer_keeps_tau", True, "optimizer.weight_decay 0", "leave it at False")
    if tuned_at is None:
        yield f"optimizer.tuned_at_batch_size is unset; optimizer.transfer_rule {rule} needs it"
    if rule in FREE_EXPONENT and exponent is None:
        yield (
            f"optimizer.lr_exponent is unset; optimizer.transfer_rule {rule} needs it: 0 keeps the learning rate, "
            "0.16 to 0.25 was tuned for Adam"
        )
    if rule not in FREE_EXPONENT and exponent is not None:
        where = f"optimizer.transfer_rule {rule}"
        yield no_effect("optimizer.lr_exponent", exponent, where, unset("optimizer.lr_exponent"))
    if rule == "half_life" and t1_tokens is not None:
        yield "optimizer.transfer_rule half_life keeps b1 per step; set optimizer.b1 in the place of t1_tokens"


def _weights(flat: Flat, defaults: Flat) -> Iterator[str]:
    name, schedule, dtype = flat["optimizer.name"], flat["optimizer.schedule"], flat["model.param_dtype"]
    if flat["optimizer.rounding"] == "stochastic" and dtype == "float32":
        yield no_effect("optimizer.rounding", "stochastic", "model.param_dtype float32", "leave it at 'nearest'")
    a, b = AVERAGE_OF_WEIGHTS
    if flat[a] is not None and flat[b] is not None:
        yield f"{a} is {flat[a]!r} and {b} is {flat[b]!r}; set one at most: {unset(a)} or {unset(b)}"
    if "interpolation" in OPTIMIZER_KEYS[name]:
        if dtype != "float32":
            yield f"model.param_dtype is {dtype}; {name} works its average out from the parameters, in float32 only"
        if schedule != "constant":
            yield f"optimizer.schedule is {schedule}; {name} takes the place of one: set it to constant"


def _budget(flat: Flat, defaults: Flat) -> Iterator[str]:
    try:
        _stages(flat)
    except UserError as error:
        key = "budget_tokens" if flat["train.batch_size_schedule"] is None else "batch_size_schedule"
        yield f"train.{key}: {error}"


def _stages(flat: Flat) -> tuple[ScheduleStage, ...]:
    size, schedule = flat["train.batch_size"], flat["train.batch_size_schedule"]
    return stages(size, schedule, flat["model.context_tokens"], flat["train.budget_tokens"])


def _batch_growth(flat: Flat, defaults: Flat) -> Iterator[str]:
    schedule, rule = flat["train.batch_size_schedule"], flat["train.batch_size_lr_rule"]
    if schedule is None:
        if rule is not None:
            key = "train.batch_size_lr_rule"
            yield no_effect(key, rule, "train.batch_size_schedule unset", unset(key))
        return
    if rule is None:
        yield "train.batch_size_lr_rule is unset; train.batch_size_schedule needs it: none, sqrt or linear"
    for key in ("optimizer.b2_min", "optimizer.b2_max"):
        if flat[key] is not None:
            yield f"{key} is {flat[key]!r}; train.batch_size_schedule keeps all half-lives as they are: {unset(key)}"


def _microbatch(flat: Flat, defaults: Flat) -> Iterator[str]:
    microbatch_size = flat["train.microbatch_size"]
    with suppress(UserError):  # reported by _budget
        for stage in _stages(flat):
            if microbatch_size is not None and stage.batch_size % microbatch_size:
                most = min(microbatch_size, stage.batch_size)
                below = max(n for n in range(1, most + 1) if stage.batch_size % n == 0)
                yield (
                    f"train.microbatch_size {microbatch_size} does not divide train.batch_size, {stage.batch_size}; "
                    f"the next smaller one is {below}"
                )


def _dispatch(flat: Flat, defaults: Flat) -> Iterator[str]:
    updates = flat["train.steps_per_dispatch"]
    with suppress(UserError):  # reported by _budget
        step_tokens = max(stage.batch_size for stage in _stages(flat)) * flat["model.context_tokens"]
        if updates is not None and updates * step_tokens > MAX_DISPATCH_TOKENS:
            yield (
                f"train.steps_per_dispatch is {updates:,}, or {updates * step_tokens:,} tokens on the devices; at most "
                f"{MAX_DISPATCH_TOKENS:,} are allowed: use {max(1, MAX_DISPATCH_TOKENS // step_tokens):,} or less"
            )


def _exactly_one(flat: Flat, pair: tuple[str, str]) -> Iterator[str]:
    a, b = pair
    if flat[a] is None and flat[b] is None:
        yield f"neither {a} nor {b} is set; set exactly one"
    elif flat[a] is not None and flat[b] is not None:
        yield f"{a} is {flat[a]!r} and {b} is {flat[b]!r}; set exactly one: {unset(a)} or {unset(b)}"
