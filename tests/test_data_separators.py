"""`data.document_separator`: escapes and line ends."""

import hashlib
import time
from pathlib import Path

import pytest
from data_specs import data_spec
from hypothesis import given
from hypothesis import strategies as st

from smallbatch.data import separators, sources
from smallbatch.errors import UserError

CASES = Path(__file__).parent / "cases"


def read(tmp_path: Path, content: bytes, separator: str) -> list[str]:
    (tmp_path / "a.txt").write_bytes(content)
    return list(sources.documents(data_spec(tmp_path, source=f"text:{tmp_path}/a.txt", document_separator=separator)))


@pytest.mark.parametrize("separator", [r"\n\n", "\n\n", r"\r\n\r\n"])
def test_escaped_and_plain_line_ends_match_crlf(tmp_path, separator):
    assert len(read(tmp_path, (CASES / "crlf_blank_lines.txt").read_bytes(), separator)) == 400


@pytest.mark.parametrize(
    ("content", "separator", "documents"),
    [
        (b"a\r\nb\r\n\r\nc", r"\n\n", ["a\r\nb", "c"]),  # a document keeps its line ends
        (b"a\rb\r\rc", r"\n\n", ["a\rb", "c"]),
        (b"a\r\nb", r"\n", ["a", "b"]),
        (b"a\nb\r\n\nc", r"\n\n", ["a\nb", "c"]),
        (b"a\r\n---\r\nb", r"\n---\n", ["a", "b"]),
        (b"a\tb", r"\t", ["a", "b"]),
        (b"a\x0cb", r"\f", ["a", "b"]),
        (b"a\x00b", r"\u0000", ["a", "b"]),
        (rb"a\nb", r"\\n", ["a", "b"]),
        (b"a.b", ".", ["a", "b"]),
        ("café||🙂 b\n||||  ||c |".encode(), "||", ["café", "🙂 b\n", "c |"]),
    ],
)
def test_text_is_split_at_the_separator(tmp_path, content, separator, documents):
    assert read(tmp_path, content, separator) == documents


@pytest.mark.parametrize("separator", [r"\d", "\\", r"\u12"])
def test_unknown_escape_is_an_error(tmp_path, separator):
    with pytest.raises(UserError, match=r"is not one of the escapes \\n, .*write \\\\ for a backslash"):
        read(tmp_path, b"a", separator)


def test_separator_that_occurs_nowhere_is_an_error(tmp_path):
    with pytest.raises(UserError, match="occurs in none"):
        read(tmp_path, b"a\r\nb\r\nc", r"\n\n")  # one CRLF is one line end
    with pytest.raises(UserError, match=r"document_separator='<\|end\|>' occurs in none of the 1 \.txt files"):
        read(tmp_path, b"one document", "<|end|>")
    with pytest.raises(UserError, match="must not be empty"):
        read(tmp_path, b"one document", "")
    (tmp_path / "c.jsonl").write_text('{"text": "a"}')
    spec = data_spec(tmp_path, source=f"text:{tmp_path}/c.jsonl", document_separator="<|end|>")
    with pytest.raises(UserError, match=r"applies only to \.txt files, and none of the 1 files is one"):
        list(sources.documents(spec))
    (tmp_path / "b.txt").write_text("one<|end|>two")
    spec = data_spec(tmp_path, source=f"text:{tmp_path}/*.txt", document_separator="<|end|>")
    assert list(sources.documents(spec)) == ["one document", "one", "two"]


PIECES = st.lists(st.sampled_from(["\r", "\n", "\r\n", "a", "é", "--"]), max_size=20).map("".join)
SEPARATORS = st.sampled_from(["\n", "\n\n", "a\n", "\n\na", "--", "\n--\n"])


@given(text=PIECES, separator=SEPARATORS)
def test_pieces_equal_those_of_str_split_with_unix_line_ends(text, separator):
    pieces = list(separators.cut(text.encode(), separators.compiled(separator)))
    assert all(text.encode()[start:].startswith(piece) for start, piece in pieces)
    unix = [piece.decode().replace("\r\n", "\n").replace("\r", "\n") for _, piece in pieces]
    assert unix == text.replace("\r\n", "\n").replace("\r", "\n").split(separator)


def test_time_is_linear_in_the_length_of_the_text(tmp_path):
    """The separator occurs at the very end, so the whole text is searched as one document."""

    def cpu_secs(size: int) -> float:
        content = hashlib.shake_128(b"text").digest(64).hex().encode() * (size // 128) + b"<|end|>last"
        times = []
        for _ in range(3):
            start = time.process_time()
            assert len(read(tmp_path, content, "<|end|>")) == 2
            times.append(time.process_time() - start)
        return min(times)

    # 4 times in linear time, 16 times in quadratic time
    assert cpu_secs(64 * 2**20) < 8 * cpu_secs(16 * 2**20)
