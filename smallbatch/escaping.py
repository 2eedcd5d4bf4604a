"""Make text safe for the place it is written to: a page, a figure, a terminal, a spreadsheet.

Names of methods and settings come from files. They stay as they are in the run table, and are escaped where they are
written.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

# Control characters but for newline and tab, halves of surrogate pairs, noncharacters: not allowed in XML 1.0, and a
# terminal obeys some of them. Line separators and marks that reverse the direction of text hide what a name is.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
# A spreadsheet takes a cell that starts with one of these, or with their full-width forms, for a formula (OWASP, "CSV
# Injection").
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_QUOTED = re.compile(r"""[",;|#\t\r\n]|^\s|\s$""")


def printable(text: str) -> str:
    """Return the text with characters that cannot be shown written as escapes, such as \\x1b."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def encodable(text: str) -> str:
    """Return the text with halves of surrogate pairs, which UTF-8 cannot hold, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def csv_text(lines: Iterable[Iterable[Any]]) -> str:
    """Return a CSV file of these lines, its header first."""
    return "".join(",".join(map(csv_cell, line)) + "\n" for line in lines)


def csv_cell(value: Any) -> str:
    """Write one value of a CSV file: text quoted where needed, and unknown values empty.

    Text that a spreadsheet would run as a formula gets a leading apostrophe; `without_apostrophes` removes it. A number
    stays a number, also a negative one.
    """
    if value is None or value != value:
        return ""
    if not isinstance(value, str):
        return str(value)
    text = encodable(f"'{value}" if _FORMULA.match(value) and not _NUMBER.fullmatch(value) else value)
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def without_apostrophes(texts: Sequence[Any]) -> list[Any]:
    """Return the texts of a column as they were before `csv_cell` protected them.

    A column that `csv_cell` wrote has no bare formula. In a column that has one, apostrophes belong to the names.
    """
    is_formula = lambda text: bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text)
    if any(text and not text.startswith("'") and is_formula(text) for text in texts):
        return list(texts)
    return [text[1:] if text and text.startswith("'") and is_formula(text) else text for text in texts]
