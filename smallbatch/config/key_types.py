"""A config key or a command-line flag: its name, default, type, meaning and allowed values."""

import math
import sys
from dataclasses import dataclass
from typing import Any

from smallbatch.errors import UserError, did_you_mean
from smallbatch.units import float32_problem

UNSET = ("None", "none")
SWITCH = {"true": True, "True": True, "1": True, "false": False, "False": False, "0": False}


@dataclass(frozen=True)
class Interval:
    """An interval of numbers. `ends` are its brackets: "[)" includes the lower end and excludes the upper one."""

    low: float
    high: float
    ends: str = "[]"

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.ends[0] == "[" else value > self.low
        below = value <= self.high if self.ends[1] == "]" else value < self.high
        return above and below and value <= sys.float_info.max  # a larger integer is below infinity, but not a float

    def __str__(self) -> str:
        return f"{self.ends[0]}{_bound(self.low)}, {_bound(self.high)}{self.ends[1]}"


def _bound(number: float) -> str:
    """Return a bound as text, with large powers of two as 2^N."""
    exponent = math.log2(number) if 2**15 < number < math.inf else 0.5
    return f"2^{exponent:.0f}" if exponent.is_integer() else f"{number:g}"


@dataclass(frozen=True)
class Key:
    """A config key (section.key) or a command-line flag (--flag). A key with the default None is optional."""

    name: str
    default: Any  # a tuple: the flag takes a list of values, separated by commas
    type: type
    meaning: str
    allowed: tuple[str, ...] | Interval | None = None  # "text:GLOB" allows any value that starts with "text:"

    @property
    def expected(self) -> str:
        """Return the allowed values as text, such as "a number in (0, inf)"."""
        if isinstance(self.allowed, tuple):
            words = f"one of {', '.join(self.allowed)}"
        else:
            words = {int: "an integer", float: "a number", str: "text", bool: "true or false"}[self.type]
            words += f" in {self.allowed}" if self.allowed else ""
        words += ", or several separated by commas" if isinstance(self.default, tuple) else ""
        return words + (", or None" if self.default is None else "")

    def default_text(self) -> str:
        """Return the default as it is written on a command line."""
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default))
        return "unset" if self.default in (None, ()) else str(self.default) or "empty"

    def must_be(self, value: Any) -> str:
        """Return the error for a value that is not allowed."""
        near = ""
        if isinstance(self.allowed, tuple) and isinstance(value, str):
            kind, kinds = value.partition(":")[0], [choice.partition(":")[0] for choice in self.allowed]
            near = "" if kind in kinds else did_you_mean(kind, kinds)
        return f"{self.name} is {value!r:.80}, but must be {self.expected}{near}"

    def has_type(self, value: Any) -> bool:
        if value is None:
            return self.default is None
        kinds = (int, float) if self.type is float else self.type
        return isinstance(value, kinds) and isinstance(value, bool) is (self.type is bool)

    def cast(self, value: Any) -> Any:
        """Return 4 for 4.0 if the type is int, and 4.0 for 4 if it is float; return any other value unchanged."""
        if self.type is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return value

    def problem(self, value: Any) -> str | None:
        """Return the error for a value, or None if the value is allowed."""
        if isinstance(self.default, tuple):
            return next((problem for item in value if (problem := self._problem(item))), None)
        return self._problem(value)

    def _problem(self, value: Any) -> str | None:
        if not self.has_type(value):
            return self.must_be(value)
        if value is None:
            return None
        if isinstance(self.allowed, Interval) and value not in self.allowed:
            return self.must_be(value)
        if isinstance(self.allowed, tuple) and not any(_matches(value, choice) for choice in self.allowed):
            return self.must_be(value)
        if self.type is str and not is_utf8(value):
            return (
                f"{self.name} is {value!r}, which is not valid UTF-8; remove the lone surrogates (\\ud800 to \\udfff)"
            )
        # Floats of these sections are inputs of the compiled program, except token counts, which are converted first.
        is_input = self.name.startswith(("optimizer.", "model.")) and not self.name.endswith("_tokens")
        if self.type is float and is_input and (words := float32_problem(value)):
            return f"{self.name} is {value!r}, which is {words}; choose a number in the range of float32"
        return None

    def parse(self, text: str) -> Any:
        """Return the value of a text from the command line. Raises UserError if it has another type."""
        if self.default is None and text in UNSET and not (isinstance(self.allowed, tuple) and text in self.allowed):
            return None
        try:
            if isinstance(self.default, tuple):
                return tuple(self._parse(part) for part in text.split(",") if part or self.default)
            return self._parse(text)
        except (ValueError, KeyError):
            raise UserError(self.must_be(text)) from None

    def _parse(self, text: str) -> Any:
        if self.type is bool:
            return SWITCH[text]
        if self.type is not int:
            return self.type(text)
        try:
            return int(text)
        except ValueError:
            number = float(text)  # 1e6 and 3.0 are integers too
            if not number.is_integer():
                raise
            return int(number)


def is_utf8(text: str) -> bool:
    """Return whether a text has no lone surrogates, into which Python decodes bytes that are not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _matches(value: str, choice: str) -> bool:
    prefix, colon, _ = choice.partition(":")
    return value.startswith(prefix + colon) and value != prefix + colon if colon else value == choice
