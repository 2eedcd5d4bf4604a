"""Split text at `data.document_separator`.

A line end in the separator matches LF, CRLF and CR. The separator is removed; all other text is unchanged, including
line ends within a document.
"""

import mmap
import re
from collections.abc import Iterator

from smallbatch.errors import UserError

LINE_END = rb"(?:\r\n?+|\n)"  # possessive: CRLF is one line end, never CR and then LF
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "\\": "\\"}


def unescape(separator: str) -> str:
    """Return a separator with its escapes replaced, since a shell passes `\\n` as two characters.

    Raises: UserError for an unknown escape or an empty separator.
    """
    if separator == "":
        raise UserError("data.document_separator is '', but must not be empty; unset it for one document per .txt file")

    def replace(match: re.Match[str]) -> str:
        escape = match[1]
        if escape.startswith("u") and len(escape) == 5:
            return chr(int(escape[1:], 16))
        if escape not in ESCAPES:
            raise UserError(
                f"data.document_separator='{separator}': '\\{escape}' is not one of the escapes "
                "\\n, \\r, \\t, \\f, \\uXXXX and \\\\; write \\\\ for a backslash"
            )
        return ESCAPES[escape]

    text = re.sub(r"\\(u[0-9a-fA-F]{4}|.|$)", replace, separator, flags=re.DOTALL)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"data.document_separator={separator!r} is not valid UTF-8; write it in UTF-8") from error
    return text


def compiled(separator: str) -> re.Pattern[bytes]:
    """Return the pattern of `data.document_separator` in UTF-8 text."""
    lines = re.split("\r\n|\r|\n", unescape(separator))
    return re.compile(LINE_END.join(re.escape(line.encode("utf-8")) for line in lines))


def cut(data: mmap.mmap | bytes, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield (position, content) of each piece between separators, including empty pieces."""
    start = 0
    for match in pattern.finditer(data):
        yield start, data[start : match.start()]
        start = match.end()
    yield start, data[start:]
