"""Which arm a run belongs to, what its hyperparameters are, and what is a setting that nobody tunes.

One idea: all of it follows from the configs of a sweep, by one rule, whoever laid out the grid.

- arm = optimizer.name + which key of each average's pair is set (b1 or t1_tokens, b2 or t2_tokens); where grid.json
  names `arms`, a key or a list of keys, optimizer.name + their values instead.
- hyperparameters of an arm = the keys that differ between its runs, but for the batch size, the seed, and keys that
  change no number (where data is cached, how many devices).
- setting = the sweep + what differs in the model and the data, + the budget where runs of one arm and batch size
  differ in it (a budget rounded to whole batches does not make a setting).
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
SETTING_SECTIONS = ("data", "model")
# Keys that say how a run is carried out, and not what is trained.
NO_NUMBER_SECTIONS = ("mesh", "records")
NO_NUMBER = {
    *("data.cache_dir", "model.attention", "model.max_logits", "model.remat", "train.microbatch_size"),
    *("train.steps_per_dispatch", "train.log_every_tokens", "train.validate_every_tokens", "train.diagnostics"),
    *("train.checkpoint_every_secs", "train.sample_tokens", "train.sample_prompt"),
}


@dataclass(frozen=True)
class Identity:
    """Where a run belongs in the run table."""

    setting: str
    arm: str
    point: Point


@dataclass(frozen=True)
class Named:
    """The configs of one sweep, by its name, and the keys that tell its arms apart, if it says so."""

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
    """Return the identity of every run of every sweep, in their order. Arms have one name in all sweeps."""
    arms = [[_arm(config, sweep.arm_keys) for config in sweep.configs] for sweep in sweeps]
    flat = [(arm, config) for own, sweep in zip(arms, sweeps, strict=True) for arm, config in zip(own, sweep.configs, strict=True)]  # fmt: skip # noqa: E501
    labels = _labels(flat)
    return [_identities(sweep, own, labels) for sweep, own in zip(sweeps, arms, strict=True)]


def _arm(config: FlatConfig, arm_keys: tuple[str, ...]) -> tuple[tuple[str, Any], ...]:
    """The identity of an arm: ((key, value or None where it is only said to be set), ...)."""
    name = (NAME, config.get(NAME))
    if arm_keys:
        return name, *((key, _hashable(config.get(key))) for key in arm_keys if key != NAME)
    return name, *((key, None) for pair in PAIRS for key in pair if config.get(key) is not None)


def _labels(runs: list[tuple[tuple, FlatConfig]]) -> dict[tuple, str]:
    """Name the arms: by the optimizer where it is the only one of that name, and else by what tells them apart.

    'adam, b2 0.95' and 'adam, t2_tokens 1M' where each is held fixed, 'adam, t2_tokens' where it is swept.
    """
    configs: dict[tuple, list[FlatConfig]] = defaultdict(list)
    for arm, config in runs:
        configs[arm].append(config)
    labels = {}
    for arm, own in configs.items():
        name = str(arm[0][1])
        rivals = [other for other in configs if other[0] == arm[0]]
        shared = set.intersection(*(set(rival) for rival in rivals))
        words = []
        for key, value in arm[1:]:
            if (key, value) in shared:
                continue
            values = {_hashable(config.get(key)) for config in own}
            words.append(f"{key_text(key)} {value_text(key, values.pop())}" if len(values) == 1 else key_text(key))
        plain = ["no averages" if len(arm) == 1 else "the rest shared"] if len(rivals) > 1 and not words else []
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
    """Return the keys with two values or more, sorted. A key that older runs do not have yet is compared in others."""
    values: dict[str, set] = defaultdict(set)
    for config in configs:
        for key, value in config.items():
            values[key].add(_hashable(value))
    return sorted(
        key
        for key, found in values.items()
        if len(found) > 1 and key not in NO_NUMBER and key.partition(".")[0] not in NO_NUMBER_SECTIONS
    )


def _hashable(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value
