"""Determine the method, the hyperparameters and the setting of each run from the configs of its sweep.

- Method (`arm` in files): optimizer.name, and which key of each pair is set (b1 or t1_tokens, b2 or t2_tokens). If
  grid.json has `arms`, a key or a list of keys, it is optimizer.name and the values of these keys instead.
- Hyperparameters: the keys that differ between the runs of a method, except the batch size, the seed, and keys that do
  not affect the result, such as the cache directory or the number of devices.
- Setting: the sweep, the keys of model and data that differ, and the budget if it differs between runs of the same
  method and batch size. A budget that differs only by rounding to whole batches does not make a setting.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from smallbatch.analysis.read.run_table import Point
from smallbatch.analysis.report.tables import key_text, value_text

FlatConfig: TypeAlias = Mapping[str, Any]

PAIRS = (("optimizer.b1", "optimizer.t1_tokens"), ("optimizer.b2", "optimizer.t2_tokens"))
BATCH_SIZE, SEED, NAME, BUDGET = "train.batch_size", "train.seed", "optimizer.name", "train.budget_tokens"
LEARNING_RATE = "optimizer.peak_lr"
SETTING_SECTIONS = ("data", "model")
# Keys that do not affect the result of a run.
NO_EFFECT_SECTIONS = ("mesh", "records")
NO_EFFECT = {
    *("data.cache_dir", "model.attention", "model.max_logits", "model.remat", "train.microbatch_size"),
    *("train.steps_per_dispatch", "train.log_every_tokens", "train.validate_every_tokens", "train.diagnostics"),
    *("train.checkpoint_every_secs", "train.sample_tokens", "train.sample_prompt"),
}


@dataclass(frozen=True)
class Identity:
    """The setting, method and hyperparameters of a run."""

    setting: str
    arm: str
    point: Point


@dataclass(frozen=True)
class Named:
    """The configs of a sweep, and the keys that define its methods, if its grid.json has them."""

    name: str
    configs: Sequence[FlatConfig]
    arm_keys: tuple[str, ...] = ()


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested config as {dotted key: value}."""
    flat: dict[str, Any] = {}
    for section, keys in config.items():
        if isinstance(keys, Mapping):
            flat.update({f"{section}.{key}": value for key, value in keys.items()})
    return flat


def identify(sweeps: Sequence[Named]) -> list[list[Identity]]:
    """Return the identity of every run of every sweep. A method has the same name in all sweeps."""
    arms = [[_arm(config, sweep.arm_keys) for config in sweep.configs] for sweep in sweeps]
    configs: dict[tuple, list[FlatConfig]] = defaultdict(list)
    for own, sweep in zip(arms, sweeps, strict=True):
        for arm, config in zip(own, sweep.configs, strict=True):
            configs[arm].append(config)
    labels = _labels(configs)
    return [_identities(sweep, own, labels) for sweep, own in zip(sweeps, arms, strict=True)]


def _arm(config: FlatConfig, arm_keys: tuple[str, ...]) -> tuple[tuple[str, Any], ...]:
    """Return the keys that define a method, as ((key, value), ...); the value is None if only its presence counts."""
    name = (NAME, config.get(NAME))
    if arm_keys:
        return name, *((key, _hashable(config.get(key))) for key in arm_keys if key != NAME)
    return name, *((key, None) for pair in PAIRS for key in pair if config.get(key) is not None)


def _labels(configs: dict[tuple, list[FlatConfig]]) -> dict[tuple, str]:
    """Return the names of the methods: the optimizer, and if several have the same optimizer, what differs.

    A fixed value is included, as in 'adam, b2 0.95'; a swept one is not, as in 'adam, t2_tokens'.
    """
    labels = {}
    for arm, own in configs.items():
        name = str(arm[0][1])
        same_optimizer = [other for other in configs if other[0] == arm[0]]
        shared = set.intersection(*(set(other) for other in same_optimizer))
        words = []
        for key, value in arm[1:]:
            if (key, value) in shared:
                continue
            values = {_hashable(config.get(key)) for config in own}
            words.append(f"{key_text(key)} {value_text(key, values.pop())}" if len(values) == 1 else key_text(key))
        plain = ["no averages" if len(arm) == 1 else "the rest shared"] if len(same_optimizer) > 1 and not words else []
        labels[arm] = ", ".join([name, *words, *plain])
    return labels


def _identities(sweep: Named, arms: list[tuple], labels: dict[tuple, str]) -> list[Identity]:
    setting_keys = _setting_keys(sweep.configs, arms)
    outside = {BATCH_SIZE, SEED, NAME, *setting_keys, *sweep.arm_keys}
    by_arm: dict[tuple, list[FlatConfig]] = defaultdict(list)
    for arm, config in zip(arms, sweep.configs, strict=True):
        by_arm[arm].append(config)
    tuned = {arm: [key for key in _differing(own) if key not in outside] for arm, own in by_arm.items()}
    identities = []
    for arm, config in zip(arms, sweep.configs, strict=True):
        words = [f"{key_text(key)} {value_text(key, config.get(key))}" for key in setting_keys]
        point = tuple((key, _hashable(config.get(key))) for key in tuned[arm])
        identities.append(Identity(", ".join([sweep.name, *words]), labels[arm], point))
    return identities


def _setting_keys(configs: Sequence[FlatConfig], arms: list[tuple]) -> list[str]:
    differing = _differing(configs)
    keys = [key for key in differing if key.partition(".")[0] in SETTING_SECTIONS]
    if BUDGET in differing:
        budgets: dict[tuple, set] = defaultdict(set)
        for arm, config in zip(arms, configs, strict=True):
            budgets[arm, config.get(BATCH_SIZE)].add(config.get(BUDGET))
        if any(len(found) > 1 for found in budgets.values()):
            keys.append(BUDGET)
    return keys


def _differing(configs: Sequence[FlatConfig]) -> list[str]:
    """Return the keys with two or more values, sorted. Runs of older versions may lack a key."""
    values: dict[str, set] = defaultdict(set)
    for config in configs:
        for key, value in config.items():
            values[key].add(_hashable(value))
    return sorted(
        key
        for key, found in values.items()
        if len(found) > 1 and key not in NO_EFFECT and key.partition(".")[0] not in NO_EFFECT_SECTIONS
    )


def _hashable(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value
