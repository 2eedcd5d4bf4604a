"""Fingerprint configs: those that give the same numbers have the same fingerprint."""

import hashlib
import json
from typing import Any

from smallbatch.config.config_dict import Config, flatten
from smallbatch.optim import OPTIMIZERS

# Keys that may change between two sessions of one run. The mesh changes rounding only.
WITHOUT_EFFECT_ON_NUMBERS = (
    "data.cache_dir",
    "data.tfds_data_dir",
    *("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence", "mesh.cpu_devices"),
    *("records.tensorboard", "records.wandb", "records.wandb_project"),
    *("train.checkpoint_every_secs", "train.sample_prompt", "train.sample_tokens"),
)


def fingerprint(config: Config) -> str:
    """Return the SHA-256, in hexadecimal, of all values of a config that affect the numbers of a run."""
    return fingerprint_flat(flatten(config.to_dict()))


def fingerprint_flat(flat: dict[str, Any]) -> str:
    """Return the fingerprint of {dotted key: value}."""
    canonical = json.dumps(_numbers(flat), sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def differences(a: dict, b: dict) -> list[str]:
    """Return 'key: value in a | value in b' for differing keys that affect the numbers of a run. a, b: nested dicts."""
    a, b = _numbers(flatten(a)), _numbers(flatten(b))
    shown = lambda flat, key: repr(flat[key]) if key in flat else "(no such key)"
    differing = [key for key in {**a, **b} if (key in a, a.get(key)) != (key in b, b.get(key))]
    return [f"{key}: {shown(a, key)} | {shown(b, key)}" for key in differing]


def resolved_flat(flat: dict[str, Any]) -> dict[str, Any]:
    """Return {dotted key: value}, with the default of the optimizer for an unset learning rate."""
    if flat.get("optimizer.peak_lr", 0.0) is not None:
        return flat
    optimizer = OPTIMIZERS.get(flat.get("optimizer.name", ""))
    return flat | {"optimizer.peak_lr": optimizer and optimizer.default_peak_lr}


def resolved(config: Config) -> dict[str, Any]:
    """Return a config as nested dicts, with the default of the optimizer for an unset learning rate."""
    values = config.to_dict()
    flat = resolved_flat(flatten(values))
    return values | {"optimizer": values["optimizer"] | {"peak_lr": flat["optimizer.peak_lr"]}}


def _numbers(flat: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in resolved_flat(flat).items() if key not in WITHOUT_EFFECT_ON_NUMBERS}
