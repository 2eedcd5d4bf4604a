"""The exception for usage errors, which commands print as one line instead of a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A usage error. The message states what is wrong, what is allowed, and how to fix it.

    Raised for an invalid flag or config, a missing or damaged file, or a full disk. Commands print it as one line on
    stderr and exit with code 2. Any other exception is a bug and keeps its traceback.
    """


class ConfigKeyError(UserError, AttributeError, TypeError):
    """The config has no such key, or the value has the wrong type."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return '; did you mean X?' for the nearest allowed spelling, or '' when none is near."""
    near = difflib.get_close_matches(word, list(allowed), n=1)
    return f"; did you mean {near[0]}?" if near else ""
