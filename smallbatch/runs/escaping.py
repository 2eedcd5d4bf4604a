"""Escape text for a page, a figure, a terminal or a spreadsheet.

Names of methods and settings come from files. The run table keeps them unchanged; they are escaped on output.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

# Control characters except newline and tab, lone surrogates, and noncharacters: not allowed in XML 1.0, and some are
# terminal commands. Line separators and bidirectional marks can disguise a name.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
# A spreadsheet evaluates a cell that starts with one of these, or with their full-width forms, as a formula (OWASP,
# "CSV Injection").
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_QUOTED = re.compile(r"""[",;|#\t\r\n]|^\s|\s$""")


def printable(text: str) -> str:
    """Return the text with unprintable characters replaced by escapes, such as \\x1b."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def encodable(text: str) -> str:
    """Return the text with lone surrogates, which UTF-8 cannot encode, replaced by escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def csv_text(lines: Iterable[Iterable[Any]]) -> str:
    """Return these rows, header first, as the text of a CSV file."""
    return "".join(",".join(map(csv_cell, line)) + "\n" for line in lines)


def csv_cell(value: Any) -> str:
    """Return one value as a CSV field: text is quoted where needed, and an unknown value is empty.

    Text that a spreadsheet would evaluate as a formula gets a leading apostrophe; `without_apostrophes` removes it.
    Numbers are unchanged, including negative ones.
    """
    if value is None or value != value:
        return ""
    if not isinstance(value, str):
        return str(value)
    text = encodable(f"'{value}" if _FORMULA.match(value) and not _NUMBER.fullmatch(value) else value)
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def without_apostrophes(texts: Sequence[Any]) -> list[Any]:
    """Remove the apostrophes that `csv_cell` added to the texts of a column.

    A column that `csv_cell` wrote has no unprotected formula. If a column has one, its apostrophes belong to the names.
    """
    is_formula = lambda text: bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text)
    if any(text and not text.startswith("'") and is_formula(text) for text in texts):
        return list(texts)
    return [text[1:] if text and text.startswith("'") and is_formula(text) else text for text in texts]
