"""Check a config: each value by its row in the table of keys, then the rules over several keys.

A key that is set but has no effect is an error, because the user expects an effect.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from smallbatch.config.batch_schedule import stages
from smallbatch.config.config_dict import Config, flatten
from smallbatch.config.key_types import Interval
from smallbatch.config.keys import KEY_BY_NAME, KEYS, unknown_key
from smallbatch.errors import UserError
from smallbatch.files import paths
from smallbatch.optim import OPTIMIZERS
from smallbatch.specs import LARGEST_VOCAB, SMALLEST_BPE_VOCAB, SOURCES, is_bpe_vocab

Flat = dict[str, Any]  # {dotted key: value}

MAX_DISPATCH_TOKENS = 2**30  # 4 GiB of token ids
WARMUP_PAIR = ("optimizer.warmup_frac", "optimizer.warmup_tokens")
PAIRS = {"b1": ("optimizer.b1", "optimizer.t1_tokens"), "b2": ("optimizer.b2", "optimizer.t2_tokens")}
PATHS = ("data.source", "data.validation_source", "data.tokenizer", "data.cache_dir", "data.tfds_data_dir")
RULES_WITH_EXPONENT = ("half_life", "fixed")  # transfer rules that need optimizer.lr_exponent


def validate(config: Config) -> None:
    """Raise one UserError that lists every problem of a config, one per line."""
    validate_flat(flatten(config.to_dict()))


def validate_flat(flat: Flat) -> None:
    """Raise one UserError that lists every problem of {dotted key: value}, one per line."""
    found = problems(flat)
    if found:
        raise UserError("\n  ".join(found if len(found) == 1 else ["in the config:", *found]))


def problems(flat: Flat) -> list[str]:
    """Return every problem of a config."""
    found = [unknown_key(name) for name in flat if name not in KEY_BY_NAME]
    found += [f"{key.name} is missing" for key in KEYS if key.name not in flat]
    wrong = {key.name: problem for key in KEYS if key.name in flat and (problem := key.problem(flat[key.name]))}
    found += wrong.values()
    valid = {name: value for name, value in flat.items() if name not in wrong}
    for rule in RULES:
        with suppress(KeyError):  # the rule reads a key whose value is already reported
            for problem in rule(valid):
                found.append(problem)
    return found


def _source(flat: Flat) -> Iterator[str]:
    source = flat["data.source"]
    read = set(SOURCES[source.partition(":")[0]].reads)
    if (flat["data.validation_source"] or "").startswith("text:"):
        read |= set(SOURCES["text"].reads)
    if flat["data.tokenizer"].startswith("file:"):
        read.add("tokenizer")  # it decodes the samples of a model trained on token files
    for name in {name: None for kind in SOURCES.values() for name in kind.reads if name not in read}:
        if f"data.{name}" in flat:
            yield from _no_effect(flat, f"data.{name}", f"data.source {source!r}")


def _tokens(flat: Flat) -> Iterator[str]:
    if not flat["data.source"].startswith("tokens:"):
        return
    dtype, vocab_size, eod_id = (flat[f"data.tokens_{key}"] for key in ("dtype", "vocab_size", "eod_id"))
    if vocab_size is None:
        yield "data.tokens_vocab_size is unset, but data.source tokens:GLOB needs it, e.g. 50257 for GPT-2 tokens"
    elif dtype == "uint16" and vocab_size > 2**16:
        yield f"data.tokens_vocab_size is {vocab_size}, but uint16 ids allow at most 65536; use uint32 ids"
    elif eod_id is not None and eod_id >= vocab_size:
        yield f"data.tokens_eod_id is {eod_id}, but must be below data.tokens_vocab_size, {vocab_size}"


def _validation_source(flat: Flat) -> Iterator[str]:
    key = "data.validation_source"
    source, given = flat["data.source"], flat[key]
    if given is None:
        return
    kind, _, rest = given.partition(":")
    forms = SOURCES[source.partition(":")[0]].validation_forms
    if not any(form.startswith(f"{kind}:") for form in forms):
        yield f"{key} is {given!r}, but data.source {source!r} needs one of {', '.join(forms)}"
    elif kind == "split" and rest == flat["data.split"]:
        yield f"{key} is {given!r}, which is data.split, the training set; choose another split"
    yield from _no_effect(flat, "data.validation_frac", f"{key} set")


def _tokenizer(flat: Flat) -> Iterator[str]:
    tokenizer = flat["data.tokenizer"]
    if tokenizer.startswith("bpe:") and not is_bpe_vocab(tokenizer.removeprefix("bpe:")):
        sizes = f"an integer from {SMALLEST_BPE_VOCAB} to {LARGEST_VOCAB:,}"
        yield f"data.tokenizer is {tokenizer!r}, but its vocabulary size must be {sizes}"
    if not tokenizer.startswith("file:"):
        yield from _no_effect(flat, "data.eod_token", f"data.tokenizer {tokenizer!r}")


def _paths(flat: Flat) -> Iterator[str]:
    for key in PATHS:
        value, allowed = flat.get(key), KEY_BY_NAME[key].allowed
        assert not isinstance(allowed, Interval)
        if value == "":
            yield f"{key} is empty; set it to a directory"
        if not value:
            continue
        prefix = f"{value.partition(':')[0]}:" if allowed else ""
        forms = [form for form in allowed or () if form.startswith(prefix) and form.endswith(("GLOB", "PATH", "DIR"))]
        if prefix and not forms:
            continue
        try:
            paths.local(value.removeprefix(prefix), f"{key}: {prefix}" if prefix else key)
        except UserError as error:
            yield str(error)


def _shape(flat: Flat) -> Iterator[str]:
    head_width, width, context = flat["model.head_width"], flat["model.width"], flat["model.context_tokens"]
    if head_width % 2:
        yield f"model.head_width is {head_width}, but rotary positions need an even number"
    if width % head_width:
        yield f"model.head_width is {head_width}, which does not divide model.width, {width}"
    if context % flat["mesh.sequence"]:
        yield f"mesh.sequence is {flat['mesh.sequence']}, which does not divide model.context_tokens, {context}"


def _peak_lr(flat: Flat) -> Iterator[str]:
    name = flat["optimizer.name"]
    if flat["optimizer.peak_lr"] is None and OPTIMIZERS[name].default_peak_lr is None:
        rates = {other: optimizer.default_peak_lr for other, optimizer in OPTIMIZERS.items()}
        known = ", ".join(f"{rate:g} for {other}" for other, rate in rates.items() if rate is not None)
        yield (
            f"optimizer.peak_lr is unset, and {name} has no default (only {known}); set --config.optimizer.peak_lr "
            f"to a learning rate tuned for {name}"
        )


def _schedule(flat: Flat) -> Iterator[str]:
    yield from _exactly_one(flat, WARMUP_PAIR)
    schedule, decay_frac = flat["optimizer.schedule"], flat["optimizer.decay_frac"]
    warmup_tokens, budget_tokens = flat["optimizer.warmup_tokens"], flat["train.budget_tokens"]
    warmup_frac = flat["optimizer.warmup_frac"] or (warmup_tokens or 0) / budget_tokens
    if warmup_tokens is not None and warmup_tokens > budget_tokens:
        yield f"optimizer.warmup_tokens is {warmup_tokens:,}, above train.budget_tokens, {budget_tokens:,}"
    if schedule == "constant":
        yield from _no_effect(flat, "optimizer.final_lr_frac", "optimizer.schedule constant")
    if not schedule.startswith("wsd"):
        yield from _no_effect(flat, "optimizer.decay_frac", f"optimizer.schedule {schedule}")
    elif decay_frac is None:
        yield f"optimizer.decay_frac is unset, but optimizer.schedule {schedule} needs it, e.g. 0.2"
    elif warmup_frac + decay_frac > 1:
        yield (
            f"the warm-up is {warmup_frac:g} of the budget and optimizer.decay_frac is {decay_frac:g}; their sum must "
            "be at most 1"
        )


def _optimizer(flat: Flat) -> Iterator[str]:
    name = flat["optimizer.name"]
    read = OPTIMIZERS[name].hyperparams
    for word in {word: None for optimizer in OPTIMIZERS.values() for word in optimizer.hyperparams}:
        keys = PAIRS.get(word, (f"optimizer.{word}",))
        if word == "b2":
            keys = (*keys, "optimizer.b2_min", "optimizer.b2_max")
        if word not in read:
            for key in keys:
                if key in flat:
                    yield from _no_effect(flat, key, f"optimizer.name {name}")
        elif word in PAIRS:
            yield from _exactly_one(flat, PAIRS[word])
    if "embed_lr" in read and flat["optimizer.embed_lr"] is None:
        yield f"optimizer.embed_lr is unset, but optimizer.name {name} needs it, e.g. the peak_lr tuned for adam"


def _b2_limits(flat: Flat) -> Iterator[str]:
    b2, low, high = (flat[f"optimizer.{key}"] for key in ("b2", "b2_min", "b2_max"))
    if b2 is not None:
        for key in ("optimizer.b2_min", "optimizer.b2_max"):
            yield from _no_effect(flat, key, f"optimizer.b2 {b2}, since it limits the decay from t2_tokens")
    if low is not None and high is not None and low > high:
        yield f"optimizer.b2_min is {low}, above optimizer.b2_max, {high}"


def _transfer(flat: Flat) -> Iterator[str]:
    rule, tuned_at, exponent, keeps_tau = (
        flat[f"optimizer.{key}"]
        for key in ("transfer_rule", "tuned_at_batch_size", "lr_exponent", "transfer_keeps_tau")
    )
    if rule is None:
        for key in ("optimizer.tuned_at_batch_size", "optimizer.lr_exponent", "optimizer.transfer_keeps_tau"):
            yield from _no_effect(flat, key, "optimizer.transfer_rule unset")
        return
    if rule == "sqrt" and not OPTIMIZERS[flat["optimizer.name"]].sqrt_rule:
        valid = ", ".join(name for name, optimizer in OPTIMIZERS.items() if optimizer.sqrt_rule)
        yield (
            f"optimizer.transfer_rule is sqrt, but optimizer.name is {flat['optimizer.name']}, and the rule holds only "
            f"for {valid}; use linear, fixed or half_life"
        )
    if keeps_tau and not flat["optimizer.weight_decay"]:
        yield from _no_effect(flat, "optimizer.transfer_keeps_tau", "optimizer.weight_decay 0")
    if tuned_at is None:
        yield f"optimizer.tuned_at_batch_size is unset, but optimizer.transfer_rule {rule} needs it"
    if rule in RULES_WITH_EXPONENT and exponent is None:
        yield (
            f"optimizer.lr_exponent is unset, but optimizer.transfer_rule {rule} needs it: 0 keeps the learning rate, "
            "0.16 to 0.25 was tuned for Adam"
        )
    if rule not in RULES_WITH_EXPONENT:
        yield from _no_effect(flat, "optimizer.lr_exponent", f"optimizer.transfer_rule {rule}")
    if rule == "half_life" and flat["optimizer.t1_tokens"] is not None:
        yield "optimizer.transfer_rule half_life keeps b1 per step; set optimizer.b1 instead of optimizer.t1_tokens"


def _weights(flat: Flat) -> Iterator[str]:
    name, schedule, dtype = flat["optimizer.name"], flat["optimizer.schedule"], flat["model.param_dtype"]
    if dtype == "float32":
        yield from _no_effect(flat, "optimizer.rounding", "model.param_dtype float32")
    if flat["optimizer.weight_average_b"] is not None:
        yield from _at_most_one(flat, ("optimizer.weight_average_b", "optimizer.weight_average_tokens"))
    if OPTIMIZERS[name].schedule_free:
        if dtype != "float32":
            yield f"model.param_dtype is {dtype}, but {name} computes its average from the parameters; use float32"
        if schedule != "constant":
            yield f"optimizer.schedule is {schedule}, but {name} replaces a schedule; set it to constant"


def _batch_size_schedule(flat: Flat) -> Iterator[str]:
    if flat["train.batch_size_schedule"] is None:
        yield from _no_effect(flat, "train.batch_size_lr_rule", "train.batch_size_schedule unset")
        return
    if flat["train.batch_size_lr_rule"] is None:
        yield "train.batch_size_lr_rule is unset, but train.batch_size_schedule needs it: none, sqrt or linear"
    for key in ("optimizer.b2_min", "optimizer.b2_max"):
        yield from _no_effect(flat, key, "train.batch_size_schedule, which keeps all half-lives")


def _stages(flat: Flat) -> Iterator[str]:
    schedule, context = flat["train.batch_size_schedule"], flat["model.context_tokens"]
    try:
        sizes = [
            stage.batch_size
            for stage in stages(flat["train.batch_size"], schedule, context, flat["train.budget_tokens"])
        ]
    except UserError as error:
        yield f"train.{'budget_tokens' if schedule is None else 'batch_size_schedule'}: {error}"
        return
    updates, step_tokens = flat["train.steps_per_dispatch"], max(sizes) * context
    if updates is not None and updates * step_tokens > MAX_DISPATCH_TOKENS:
        yield (
            f"train.steps_per_dispatch is {updates:,}, or {updates * step_tokens:,} tokens on the devices; at most "
            f"{MAX_DISPATCH_TOKENS:,} are allowed: use {max(1, MAX_DISPATCH_TOKENS // step_tokens):,} or less"
        )
    microbatch_size = flat["train.microbatch_size"]
    for size in sizes:
        if microbatch_size is not None and size % microbatch_size:
            divisor = max(n for n in range(1, min(microbatch_size, size) + 1) if size % n == 0)
            yield (
                f"train.microbatch_size is {microbatch_size}, which does not divide train.batch_size, {size}; the next "
                f"smaller divisor is {divisor}"
            )


RULES = (
    *(_source, _tokens, _validation_source, _tokenizer, _paths, _shape, _schedule, _peak_lr, _optimizer, _b2_limits),
    *(_transfer, _weights, _stages, _batch_size_schedule),
)


def _no_effect(flat: Flat, key: str, where: str) -> Iterator[str]:
    """Yield a problem if a key is set where nothing reads it."""
    value, default = flat[key], KEY_BY_NAME[key].default
    if value != default:
        fix = f"unset it with {_unset(key)}" if default is None else f"leave it at {default!r}"
        yield f"{key} is {value!r}, which has no effect with {where}; {fix}"


def _exactly_one(flat: Flat, pair: tuple[str, str]) -> Iterator[str]:
    if flat[pair[0]] is None and flat[pair[1]] is None:
        yield f"neither {pair[0]} nor {pair[1]} is set; set exactly one"
    yield from _at_most_one(flat, pair)


def _at_most_one(flat: Flat, pair: tuple[str, str]) -> Iterator[str]:
    a, b = pair
    if flat[a] is not None and flat[b] is not None:
        yield f"{a} is {flat[a]!r} and {b} is {flat[b]!r}; unset one with {_unset(a)} or {_unset(b)}"


def _unset(key: str) -> str:
    """Return the flag that unsets a key."""
    return f"--config.{key}=None"
