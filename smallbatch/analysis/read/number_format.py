"""Parse numbers with decimal points or commas, with or without thousands separators.

Each file has one decimal mark, which is inferred from its unambiguous values, such as 3.10 or 3,05. A file with only
ambiguous values, or with contradictory ones, is an error.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from smallbatch.errors import UserError

UNSET = {"", "na", "n/a", "#n/a", "null", "none"}  # spellings of an unknown number
_WORD = re.compile(r"[+-]?(inf|infinity|nan)", re.IGNORECASE)
_SPACED = re.compile("(?<=[0-9])[ \u00a0\u2009\u202f'\u2019_](?=[0-9]{3}(?![0-9]))")
_THREE_DECIMALS = re.compile(r"[+-]?[1-9][0-9]{0,2}[.,][0-9]{3}")


def _pattern(decimal: str, group: str) -> re.Pattern[str]:
    grouped = rf"[1-9][0-9]{{0,2}}({group}[0-9]{{3}})+({decimal}[0-9]*)?"
    plain = rf"([0-9]+({decimal}[0-9]*)?|{decimal}[0-9]+)([eE][+-]?[0-9]+)?"
    return re.compile(f"[+-]?({grouped}|{plain})")


_PATTERNS = {".": _pattern(r"\.", ","), ",": _pattern(",", r"\.")}  # {decimal mark: pattern}


@dataclass(frozen=True)
class Written:
    """A value with its position: '3,05' in row 2, column loss_nats."""

    row: int
    column: str
    text: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.column} is {self.text!r}"


def decimal_mark(values: Iterable[Written]) -> str:
    """Return the decimal mark of a file, '.' or ','. Raises UserError if its numbers are contradictory or ambiguous."""
    only: dict[str, Written] = {}  # {mark: the first value that is valid with this mark only}
    open_to_both = None
    for value in values:
        if "." not in value.text and "," not in value.text:
            continue
        readable = [mark for mark in _PATTERNS if _fits(value.text, mark)]
        if len(readable) == 1:
            only.setdefault(readable[0], value)
        elif readable and "," in value.text and open_to_both is None:
            open_to_both = value
    if len(only) == 2:
        raise UserError(
            f"{only[',']}, and {only['.']}; a file must use one decimal mark: write all numbers with a decimal point"
        )
    if not only and open_to_both:
        number = open_to_both.text.replace(",", "")
        raise UserError(
            f"{open_to_both}, which can mean {number} or {open_to_both.text.replace(',', '.')}; write numbers with a "
            "decimal point and without thousands separators"
        )
    return next(iter(only), ".")


def number(text: str, decimal: str) -> int | float | None:
    """Return the number, an int if written as one; None if the text is not a number."""
    text = _plain(text)
    if _WORD.fullmatch(text):
        return float(text)
    if not _PATTERNS[decimal].fullmatch(text):
        return None
    text = text.replace("," if decimal == "." else ".", "").replace(decimal, ".")
    return int(text) if re.fullmatch("[+-]?[0-9]{1,300}", text) else float(text)


def is_grouped(text: str, decimal: str) -> bool:
    """Return whether a number has thousands separators."""
    return ("," if decimal == "." else ".") in text


def looks_like_thousands(text: str, decimal: str) -> bool:
    """Return whether a number with decimals, such as 1.024, could be an integer with a thousands separator."""
    return bool(_THREE_DECIMALS.fullmatch(_plain(text))) and not is_grouped(text, decimal)


def is_number(text: str) -> bool:
    """Return whether a text is a number with either decimal mark."""
    return any(_fits(text, mark) for mark in _PATTERNS) or bool(_WORD.fullmatch(_plain(text)))


def _fits(text: str, mark: str) -> bool:
    return bool(_PATTERNS[mark].fullmatch(_plain(text)))


def _plain(text: str) -> str:
    return _SPACED.sub("", text.strip().replace("\u2212", "-"))
