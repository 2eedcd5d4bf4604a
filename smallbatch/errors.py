"""The one exception that a command turns into a single line instead of a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the person at the keyboard can mend: says what, what is allowed, and the fix.

    Raised for a bad flag, a bad config, a missing or damaged file, a full disk. Commands print it as one line
    on stderr and exit with code 2. Everything else that is raised is a bug of ours and keeps its traceback.
    """


class ConfigKeyError(UserError, AttributeError, TypeError):
    """A config that does not take a key, or a value of such a type."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return '; did you mean X?' for the nearest allowed spelling, or '' when none is near."""
    near = difflib.get_close_matches(word, list(allowed), n=1)
    return f"; did you mean {near[0]}?" if near else ""
