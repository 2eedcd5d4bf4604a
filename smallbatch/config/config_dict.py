"""Build configs from the table of keys: a locked ConfigDict of sections."""

from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from smallbatch.config import keys
from smallbatch.errors import ConfigKeyError, UserError

T = TypeVar("T")
Config: TypeAlias = Any  # a ConfigDict, whose fields have no static types


class _Config(ConfigDict):
    """A ConfigDict with one-line errors for an unknown key or a value of another type."""

    def __setitem__(self, name: str, value: Any) -> None:
        if self.is_locked:
            value = self._checked(name, value)
        super().__setitem__(name, value)

    def _checked(self, name: str, value: Any) -> Any:
        dotted = next((f"{section}.{name}" for section, names in _names().items() if names == set(self)), name)
        if dotted in _names():
            raise ConfigKeyError(f"{dotted} is a section; set its keys, such as {keys.sections()[dotted][0].name}")
        try:
            key = keys.find(dotted)
        except UserError as error:
            raise ConfigKeyError(str(error)) from None
        value = key.cast(value)
        if not key.has_type(value):
            raise ConfigKeyError(key.must_be(value))
        return value

    def __repr__(self) -> str:
        return str(self)


def _names() -> dict[str, set[str]]:
    return {section: {key.name.partition(".")[2] for key in found} for section, found in keys.sections().items()}


def base() -> Config:
    """Return the defaults of all keys as a locked ConfigDict: a small decoder, on Python's standard library.

    A config file must also set the warm-up and the decay rates of its optimizer, such as b1 and t2_tokens.
    """
    config = _Config()
    for section, found in keys.sections().items():
        config[section] = values = _Config()
        for key in found:
            values[key.name.partition(".")[2]] = placeholder(key.type) if key.default is None else key.default
    return config.lock()


def quickstart() -> Config:
    """Return the config of a command without --config; `configs/quickstart.py` returns the same."""
    config = base()
    config.optimizer.b1 = 0.9
    config.optimizer.t2_tokens = 1e6
    config.optimizer.warmup_frac = 0.05
    config.train.batch_size = 4
    config.train.budget_tokens = 2**20
    return config


def from_sections(sections: Mapping[str, Mapping[str, Any]]) -> Config:
    """Return the config of saved sections, with defaults for missing keys.

    Raises UserError for an unknown key or a value of another type.
    """
    config = base()
    for name, value in flatten(sections).items():
        section, _, last = keys.find(name).name.partition(".")
        config[section][last] = value
    return config


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return {'section.key': value} of a nested dict."""
    flat = {}
    for section, values in config.items():
        flat |= {f"{section}.{key}": v for key, v in values.items()} if isinstance(values, dict) else {section: values}
    return flat


def variant(argument: str, variants: Mapping[str, T]) -> T:
    """Return the variant selected by the ARGUMENT of FILE.py:ARGUMENT. Raises UserError if there is no such variant."""
    if argument not in variants:
        raise UserError(f"there is no variant {argument!r}; write FILE.py:ARGUMENT with one of {', '.join(variants)}")
    return variants[argument]
