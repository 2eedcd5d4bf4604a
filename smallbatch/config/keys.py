"""Every key that can be set, with its default and unit; what makes a config valid; its fingerprint.

A config file is a delta on `base()`, which is locked from birth, so that a mistyped key raises. Optional keys
are typed placeholders: None until set. Nothing here starts JAX.
"""

import difflib
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

from ml_collections import config_dict
from ml_collections.config_dict import placeholder

from smallbatch.config import checks as config_checks
from smallbatch.errors import ConfigKeyError, UserError
from smallbatch.optim import OPTIMIZERS

T = TypeVar("T")
Config: TypeAlias = Any  # a ConfigDict, whose fields have no static types


class _Keys(config_dict.ConfigDict):
    """A ConfigDict that refuses a key or a value in words, where the original shows all that it holds."""

    def __setitem__(self, key: str, value: Any) -> None:
        if self.is_locked and key not in self:
            raise ConfigKeyError(unknown_key(self._dotted(key)))
        if self.is_locked:
            value = self._as_whole(key, value)
        try:
            super().__setitem__(key, value)
        except TypeError:
            words = config_checks.TYPE_WORDS.get(self.get_type(key), "a section of keys")
            raise ConfigKeyError(f"{self._dotted(key)} is {value!r}, but must be {words}") from None

    def _as_whole(self, key: str, value: Any) -> Any:
        """Return 4 for 4.0 if the key is an integer. Raises ConfigKeyError for True and False in numeric keys.

        ConfigDict accepts a bool for an int, and changes the type of the key to bool.
        """
        kind = self.get_type(key)
        if isinstance(value, bool) and kind in (int, float):
            raise ConfigKeyError(f"{self._dotted(key)} is {value!r}, but must be {config_checks.TYPE_WORDS[kind]}")
        return int(value) if kind is int and isinstance(value, float) and value.is_integer() else value

    def __repr__(self) -> str:
        return str(self)

    def _dotted(self, key: str) -> str:
        return next((f"{section}.{key}" for section, keys in sections().items() if keys == list(self)), key)


def base() -> Config:
    """Return every key with its default, locked: the paper's decoder, small, on Python's standard library.

    The pairs of which exactly one must be set (b1 or t1_tokens, ...) are left open: a config file sets them.
    """
    c = _Keys()

    c.data = data = _Keys()
    data.source = "pystdlib"  # pystdlib | tfds:NAME | text:GLOB | tokens:GLOB
    data.tokenizer = "bytes"  # bytes | bpe:VOCABULARY | file:PATH of a tokenizer.json
    data.split = "train"  # TFDS split to read
    data.text_key = "text"  # field that holds the text in TFDS examples, .jsonl and .parquet
    data.document_separator = placeholder(str)  # splits .txt files, e.g. at '\n\n'; unset: one document per file
    data.eod_token = placeholder(str)  # end of document in a tokenizer file; unset: the usual names are tried
    data.tokens_dtype = "uint16"  # of tokens:PATH; uint16 | uint32
    data.tokens_vocab_size = placeholder(int)  # of tokens:PATH; needed there
    data.tokens_eod_id = placeholder(int)  # of tokens:PATH; unset: the tail of the file is held out
    data.validation_source = placeholder(str)  # text:GLOB | tokens:GLOB | split:TFDS_SPLIT; unset: part of source
    data.validation_frac = 0.05  # share of the documents held out, chosen by a hash of their text
    data.validation_max_bytes = 524_288  # largest validation set, also with validation_source
    data.tfds_data_dir = placeholder(str)  # local directory of TFDS datasets; unset: the TFDS default
    data.cache_dir = "~/.cache/smallbatch"  # token shards are written here and reused
    data.shuffle_seed = 0  # order of the training sequences

    c.model = model = _Keys()
    model.width = 128  # D
    model.layers = 4  # L
    model.head_width = 32  # H; the number of heads is width / head_width
    model.ffn_width = placeholder(int)  # F; unset: 4 x width
    model.context_tokens = 256  # T
    model.rope_base = 10_000.0
    model.param_dtype = "float32"  # float32 | bfloat16
    model.compute_dtype = "float32"  # float32 | bfloat16; softmax and loss are float32 always
    model.matmul_precision = "highest"  # of float32 products: highest | high | default (GPU: TF32, TPU: bfloat16)
    model.remat = "none"  # none | dots (keep matrix products) | full (keep block inputs)
    model.attention = "auto"  # auto | xla | cudnn | splash
    model.max_logits = 2**26  # tokens x vocabulary that the loss holds at once on a device; more is done in slices

    c.optimizer = optimizer = _Keys()
    optimizer.name = "adam"  # a row of the README's table: adam | sgd | momentum | muon | lion | adafactor | ...
    optimizer.peak_lr = placeholder(float)  # unset: 0.003 for adam; required for other optimizers
    optimizer.schedule = "cosine"  # cosine | linear | constant | wsd_linear | wsd_sqrt, after the warm-up
    optimizer.warmup_frac = placeholder(float)  # warm-up as a share of the budget ...
    optimizer.warmup_tokens = placeholder(int)  # ... or in tokens: exactly one of the two
    optimizer.decay_frac = placeholder(float)  # of wsd schedules: the last share of the budget, in which it falls
    optimizer.final_lr_frac = 0.0  # learning rate at the end, as a share of the peak
    optimizer.b1 = placeholder(float)  # average of the gradient: decay per step ...
    optimizer.t1_tokens = placeholder(float)  # ... or half-life in tokens: exactly one of the two
    optimizer.b2 = placeholder(float)  # average of its square (lion: the average kept): decay per step ...
    optimizer.t2_tokens = placeholder(float)  # ... or half-life in tokens: exactly one of the two
    optimizer.b2_min = placeholder(float)  # floor of the decay per step that follows from t2_tokens
    optimizer.b2_max = placeholder(float)  # ceiling of it
    optimizer.eps = 1e-8  # of adam, and of muon's embeddings
    optimizer.nesterov = False  # of momentum, heavy_ball and muon
    optimizer.muon_matrices = "whole"  # of muon: whole (q, k, v over all heads) | heads (per head, as in the paper)
    optimizer.embed_lr = placeholder(float)  # of muon: peak learning rate of the embeddings and the output, by Adam
    optimizer.decay_exponent = 0.8  # of adafactor_power: 1 - b2 of update t is t^-c
    optimizer.interpolation = 0.9  # of schedule_free_*: share of the average in the point where gradients are taken
    optimizer.weight_decay = 0.0  # decoupled, times the learning rate
    optimizer.clip_norm = placeholder(float)  # gradients of a larger norm are scaled down to it; unset: never
    optimizer.rounding = "nearest"  # nearest | stochastic, of bfloat16 parameters
    optimizer.weight_average_b = placeholder(float)  # average of the weights, scored beside them: decay per step ...
    optimizer.weight_average_tokens = placeholder(float)  # ... or half-life in tokens; both unset: none is kept
    optimizer.transfer_rule = placeholder(str)  # half_life | fixed | sqrt | linear: the numbers above were tuned ...
    optimizer.tuned_at_batch_size = placeholder(int)  # ... at this batch size, and are carried over to train.batch_size
    optimizer.lr_exponent = placeholder(float)  # p of half_life and fixed: learning rate x (batch size ratio)^p
    optimizer.transfer_keeps_tau = False  # also scale weight decay to keep 1 / (lr wd) constant in tokens

    c.train = train = _Keys()
    train.batch_size = 16  # sequences per optimizer update, over all devices
    train.microbatch_size = placeholder(int)  # sequences per forward pass; unset: the batch (CPU: one a device)
    train.batch_size_schedule = placeholder(str)  # TOKENS:SIZE,TOKENS:SIZE: from so many tokens on, so many sequences
    train.batch_size_lr_rule = placeholder(str)  # none | sqrt | linear: learning rate x (batch size ratio)^0, 1/2, 1
    train.budget_tokens = 2**21  # rounded up to whole updates of batch_size x context_tokens tokens
    train.seed = 0  # initial weights
    train.steps_per_dispatch = placeholder(int)  # updates per compiled call; unset: chosen by their FLOPs
    train.log_every_tokens = 2**15
    train.validate_every_tokens = placeholder(int)  # unset: at the end only
    train.diagnostics = False  # record norms and cosines of gradients and updates, and the gradient noise scale
    train.checkpoint_every_secs = 60.0
    train.diverged_above_start_nats = 3.0  # mean loss of a log interval this far above the start ends the run
    train.sample_tokens = 200  # length of the text sampled at the end; 0 for none
    train.sample_prompt = "def "

    c.mesh = mesh = _Keys()
    mesh.data = placeholder(int)  # devices the batch is split over; unset: as many as divide the micro-batch
    mesh.fsdp = 1  # devices that split the batch and share the parameters
    mesh.tensor = placeholder(int)  # devices that share heads, MLP and vocabulary; unset: idle CPU cores, else 1
    mesh.sequence = 1  # devices that share the positions of each sequence
    mesh.cpu_devices = placeholder(int)  # without an accelerator; unset: one a core, or 1 for a large model

    c.records = records = _Keys()
    records.tensorboard = False  # needs the extra `tensorboard`
    records.wandb = "off"  # off | offline | online; needs the extra `wandb`
    records.wandb_project = "smallbatch"
    return c.lock()


def from_sections(sections: Mapping[str, Mapping[str, Any]]) -> Config:
    """Return the config of saved sections, with defaults for missing keys.

    Raises UserError for an unknown key or a value of another type.
    """
    c = base()
    for key, value in flatten(dict(sections)).items():
        if key not in key_types():
            raise UserError(unknown_key(key))
        section, _, name = key.partition(".")
        c[section][name] = value
    return c


def quickstart() -> Config:
    """Return what a command runs when no config file is named; `configs/quickstart.py` returns the same."""
    c = base()
    c.optimizer.b1 = 0.9
    c.optimizer.t2_tokens = 1e6
    c.optimizer.warmup_frac = 0.05
    c.train.batch_size = 4
    c.train.budget_tokens = 2**20
    return c


def variant(argument: str, variants: Mapping[str, T]) -> T:
    """Return what a config file's `:ARGUMENT` names. Raises UserError that lists what it can be."""
    if argument not in variants:
        raise UserError(f"there is no variant {argument!r}; write FILE.py:ARGUMENT with {' | '.join(variants)}")
    return variants[argument]


@functools.cache
def key_types() -> dict[str, tuple[type, bool]]:
    """Return {dotted key: (its type, whether it may be unset)}."""
    c = base()
    return {
        f"{section}.{key}": (c[section].get_type(key), c[section][key] is None) for section in c for key in c[section]
    }


def choices(key: str) -> tuple[str, ...]:
    """Return the words that a key can be set to, none where it takes any."""
    return config_checks.CHOICES.get(key, ())


def sections() -> dict[str, list[str]]:
    """Return {section: its keys}."""
    return {section: list(values) for section, values in base().to_dict().items()}


def nearest_key(name: str) -> str | None:
    """Return the key that a mistyped name probably meant, also when its section is wrong or not there."""
    by_last = {key.rpartition(".")[2]: key for key in key_types()}
    last = name.rpartition(".")[2]
    if last in by_last:
        return by_last[last]
    near = difflib.get_close_matches(name, by_last.values(), n=1, cutoff=0.75)
    return (near or [by_last[key] for key in difflib.get_close_matches(last, by_last, n=1)] or [None])[0]


def unknown_key(name: str, prefix: str = "") -> str:
    """Say that a dotted key does not exist and what was probably meant, or else what there is.

    `prefix` goes before the names, to write them as they are written on a command line.
    """
    keys = sections()
    section = name.partition(".")[0]
    if name in keys:
        return f"{prefix}{name} is a section, not a key; it has {', '.join(keys[name])}"
    if near := nearest_key(name):
        return f"there is no key {prefix}{name}; did you mean {prefix}{near}?"
    if section in keys:
        return f"there is no key {prefix}{name}; {section} has {', '.join(keys[section])}"
    return f"there is no key {prefix}{name}; the sections are {', '.join(keys)}"


@functools.cache
def defaults() -> dict[str, Any]:
    """Return {dotted key: its default}."""
    return flatten(base().to_dict())


def validate(config: Config) -> None:
    """Raise one UserError that lists every problem of a config, one a line."""
    validate_flat(flatten(config.to_dict()))


def validate_flat(flat: dict[str, Any]) -> None:
    """Do so for {dotted key: value}."""
    problems = config_checks.problems(flat, defaults(), key_types())
    if problems:
        raise UserError("\n  ".join(problems if len(problems) == 1 else ["in the config:", *problems]))


# What may change between two sessions of one run, because no number depends on it (on the mesh: but for rounding).
WITHOUT_EFFECT_ON_NUMBERS = (
    "data.cache_dir",
    "data.tfds_data_dir",
    *("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence", "mesh.cpu_devices"),
    "records.tensorboard",
    "records.wandb",
    "records.wandb_project",
    "train.checkpoint_every_secs",
    "train.sample_prompt",
    "train.sample_tokens",
)


def fingerprint(config: Config) -> str:
    """Return the SHA-256, in hexadecimal, of everything in a config that changes a number."""
    return fingerprint_flat(flatten(config.to_dict()))


def fingerprint_flat(flat: dict[str, Any]) -> str:
    """Return the same for {dotted key: value}."""
    canonical = json.dumps(_numbers(flat), sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def differences(a: dict, b: dict) -> list[str]:
    """Return 'key: value in a | value in b' for keys that change a number and differ. a, b: nested dicts."""
    a, b = _numbers(flatten(a)), _numbers(flatten(b))
    keys = [key for key in {**a, **b} if (key in a, a.get(key)) != (key in b, b.get(key))]
    return [f"{key}: {_shown(a, key)} | {_shown(b, key)}" for key in keys]


def flatten(config: dict) -> dict[str, Any]:
    """Return {'section.key': value} of a nested dict."""
    flat = {}
    for section, values in config.items():
        flat |= {f"{section}.{key}": v for key, v in values.items()} if isinstance(values, dict) else {section: values}
    return flat


def resolved_flat(flat: dict[str, Any]) -> dict[str, Any]:
    """Return {dotted key: value}, with an unset learning rate replaced by its default."""
    if flat.get("optimizer.peak_lr", 0.0) is not None:
        return flat
    optimizer = OPTIMIZERS.get(flat.get("optimizer.name", ""))
    return flat | {"optimizer.peak_lr": optimizer and optimizer.default_peak_lr}


def resolved(config: Config) -> dict[str, Any]:
    """Return a config as nested dicts, with an unset learning rate replaced by its default."""
    values = config.to_dict()
    flat = resolved_flat(flatten(values))
    return values | {"optimizer": values["optimizer"] | {"peak_lr": flat["optimizer.peak_lr"]}}


def _numbers(flat: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in resolved_flat(flat).items() if key not in WITHOUT_EFFECT_ON_NUMBERS}


def _shown(flat: dict[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "(no such key)"
