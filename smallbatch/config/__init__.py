"""Config keys, files and command lines. `from smallbatch import config; c = config.base()` starts a config file."""

from smallbatch.config.checks import validate, validate_flat
from smallbatch.config.config_dict import Config, base, flatten, from_sections, quickstart, variant
from smallbatch.config.fingerprints import differences, fingerprint, fingerprint_flat, resolved, resolved_flat
from smallbatch.config.keys import KEY_BY_NAME, find, unknown_key

__all__ = [
    "KEY_BY_NAME",
    "Config",
    "base",
    "differences",
    "find",
    "fingerprint",
    "fingerprint_flat",
    "flatten",
    "from_sections",
    "quickstart",
    "resolved",
    "resolved_flat",
    "unknown_key",
    "validate",
    "validate_flat",
    "variant",
]
