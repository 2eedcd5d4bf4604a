"""Split text files into documents at `data.document_separator`, in one pass over each file.

A line end in the separator matches LF, CRLF and CR. The separator is removed; all other text is unchanged, including
line ends within a document.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from smallbatch.errors import UserError

BLOCK_BYTES = 2**20
LINE_END = rb"(?:\r\n?+|\n)"  # possessive: CRLF is one line end, never CR and then LF
LINE_END_BYTES = 2
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "\\": "\\"}


def unescape(separator: str) -> str:
    """Return a separator with its escapes replaced, since a shell passes `\\n` as two characters.

    Raises: UserError for an unknown escape or an empty separator.
    """
    if separator == "":
        raise UserError("data.document_separator is '', and must not be empty; unset it for one document per .txt file")

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


@dataclass(frozen=True)
class Separator:
    """A compiled separator. `longest_bytes` is the length of its longest match."""

    pattern: re.Pattern[bytes]
    longest_bytes: int

    def occurs_in(self, file: BinaryIO) -> bool:
        """Return whether the separator occurs between the current position and the end of a file."""
        end = b""
        while block := file.read(BLOCK_BYTES):
            data = end + block
            if self.pattern.search(data):
                return True
            end = data[max(0, len(data) - self.longest_bytes + 1) :]
        return False

    def cut(self, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
        """Yield (position in the file, content) of each piece between separators, including empty pieces."""
        buffer = bytearray()  # content from the start of the current piece
        buffer_start = search_from = 0
        while True:
            block = file.read(BLOCK_BYTES)
            buffer += block
            piece_start = 0
            while match := self.pattern.search(buffer, search_from):
                if block and match.end() == len(buffer):  # a CR here may be half of a CRLF
                    search_from = match.start()
                    break
                yield buffer_start + piece_start, bytes(buffer[piece_start : match.start()])
                piece_start = search_from = match.end()
            else:
                search_from = max(search_from, len(buffer) - self.longest_bytes + 1)
            if not block:
                yield buffer_start + piece_start, bytes(buffer[piece_start:])
                return
            del buffer[:piece_start]  # once per block, because deleting after each piece would take quadratic time
            buffer_start += piece_start
            search_from -= piece_start


def compile_separator(separator: str) -> Separator:
    """Return the compiled form of `data.document_separator`."""
    lines = [line.encode("utf-8") for line in unescape(separator).replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    pattern = re.compile(LINE_END.join(map(re.escape, lines)))
    return Separator(pattern, sum(map(len, lines)) + LINE_END_BYTES * (len(lines) - 1))
