"""Read numbers as people and programs write them: decimal points or commas, with or without thousands separators.

One file has one decimal mark. It is found from the values that can be read in one way only, such as 3.10 or 3,05; a
file in which that stays open, or in which two values contradict each other, is refused with the value.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from smallbatch.errors import UserError

UNSET = {"", "na", "n/a", "#n/a", "null", "none"}  # what tables hold where a number is not known
_WORD = re.compile(r"[+-]?(inf|infinity|nan)", re.IGNORECASE)
_SPACED = re.compile("(?<=[0-9])[ \u00a0\u2009\u202f'\u2019_](?=[0-9]{3}(?![0-9]))")
_THREE_DECIMALS = re.compile(r"[+-]?[1-9][0-9]{0,2}[.,][0-9]{3}")


def _pattern(decimal: str, group: str) -> re.Pattern[str]:
    grouped = rf"[1-9][0-9]{{0,2}}({group}[0-9]{{3}})+({decimal}[0-9]*)?"
    plain = rf"([0-9]+({decimal}[0-9]*)?|{decimal}[0-9]+)([eE][+-]?[0-9]+)?"
    return re.compile(f"[+-]?({grouped}|{plain})")


_PATTERNS = {".": _pattern(r"\.", ","), ",": _pattern(",", r"\.")}  # by the decimal mark


@dataclass(frozen=True)
class Written:
    """A value in its place: '3,05' of row 2, column loss_nats."""

    row: int
    column: str
    text: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.column} is {self.text!r}"


def decimal_mark(values: Iterable[Written]) -> str:
    """Return the decimal mark of a file, '.' or ','. Raises UserError where its numbers contradict each other."""
    only: dict[str, Written] = {}  # the first value that can be read with this mark alone
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
        raise UserError(f"{only[',']}, and {only['.']}; write all numbers of a file with a decimal point")
    if not only and open_to_both:
        number = open_to_both.text.replace(",", "")
        raise UserError(
            f"{open_to_both}, which can be {number} or {open_to_both.text.replace(',', '.')}; write numbers with a "
            "decimal point and without thousands separators"
        )
    return next(iter(only), ".")


def number(text: str, decimal: str) -> int | float | None:
    """Return a number, an int where it is written as one; None where the text is no number."""
    text = _plain(text)
    if _WORD.fullmatch(text):
        return float(text)
    if not _PATTERNS[decimal].fullmatch(text):
        return None
    text = text.replace("," if decimal == "." else ".", "").replace(decimal, ".")
    return int(text) if re.fullmatch("[+-]?[0-9]{1,300}", text) else float(text)


def is_grouped(text: str, decimal: str) -> bool:
    """Return whether a number has thousands separators, beside its decimal mark."""
    return ("," if decimal == "." else ".") in text


def looks_like_thousands(text: str, decimal: str) -> bool:
    """Return whether a number with decimals, such as 1.024, could be one with a thousands separator."""
    return bool(_THREE_DECIMALS.fullmatch(_plain(text))) and not is_grouped(text, decimal)


def is_number(text: str) -> bool:
    """Return whether a text is a number with one decimal mark or the other."""
    return any(_fits(text, mark) for mark in _PATTERNS) or bool(_WORD.fullmatch(_plain(text)))


def _fits(text: str, mark: str) -> bool:
    return bool(_PATTERNS[mark].fullmatch(_plain(text)))


def _plain(text: str) -> str:
    return _SPACED.sub("", text.strip().replace("\u2212", "-"))
