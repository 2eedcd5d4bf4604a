"""`data.document_separator`: escapes, line ends, and time that grows linearly with the text."""

import hashlib
import io
import time
from pathlib import Path

import pytest
from data_specs import data_spec
from hypothesis import given
from hypothesis import strategies as st

from smallbatch.data import sources
from smallbatch.data.prepare import prepare
from smallbatch.errors import UserError

CASES = Path(__file__).parent / "cases"


def read(tmp_path: Path, content: bytes, separator: str) -> list[str]:
    (tmp_path / "a.txt").write_bytes(content)
    return list(sources.documents(data_spec(tmp_path, source=f"text:{tmp_path}/a.txt", document_separator=separator)))


def test_a_text_with_crlf_is_cut_at_blank_lines_by_the_separator_as_a_shell_passes_it(tmp_path):
    source = f"text:{CASES}/crlf_blank_lines.txt"
    for separator in (r"\n\n", "\n\n", r"\r\n\r\n"):
        dataset = prepare(data_spec(tmp_path, source=source, document_separator=separator))
        assert (dataset.meta.train.documents or 0) + (dataset.meta.validation.documents or 0) == 400


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
    ],
)
def test_escapes_and_line_ends_of_a_separator(tmp_path, content, separator, documents):
    assert read(tmp_path, content, separator) == documents


def test_one_crlf_is_no_blank_line(tmp_path):
    with pytest.raises(UserError, match="occurs in none"):
        read(tmp_path, b"a\r\nb\r\nc", r"\n\n")


@pytest.mark.parametrize("separator", [r"\d", "\\", r"\u12"])
def test_an_unknown_escape_is_refused_with_those_that_are_allowed(tmp_path, separator):
    with pytest.raises(UserError, match=r"is not one of the escapes \\n, .*write \\\\ for a backslash"):
        read(tmp_path, b"a", separator)


def test_a_separator_that_occurs_in_no_file_is_refused(tmp_path):
    (tmp_path / "b.txt").write_text("no separator here")
    with pytest.raises(UserError, match=r"document_separator='<\|end\|>' occurs in none of the 1 \.txt files"):
        read(tmp_path, b"one document", "<|end|>")
    (tmp_path / "c.jsonl").write_text('{"text": "a"}')
    spec = data_spec(tmp_path, source=f"text:{tmp_path}/c.jsonl", document_separator="<|end|>")
    with pytest.raises(UserError, match=r"applies only to \.txt files, and none of the 1 files is one"):
        list(sources.documents(spec))
    (tmp_path / "b.txt").write_text("one<|end|>two")
    spec = data_spec(tmp_path, source=f"text:{tmp_path}/*.txt", document_separator="<|end|>")
    assert list(sources.documents(spec)) == ["one document", "one", "two"]


PIECES = st.lists(st.sampled_from(["\r", "\n", "\r\n", "a", "é", "--"]), max_size=20).map("".join)
SEPARATORS = st.sampled_from(["\n", "\n\n", "a\n", "\n\na", "--", "\n--\n"])


@given(text=PIECES, separator=SEPARATORS, block_bytes=st.integers(1, 9))
def test_cuts_do_not_depend_on_the_blocks_that_are_read(text, separator, block_bytes):
    from smallbatch.data import separators

    def cut(size: int) -> list[tuple[int, bytes]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(separators, "BLOCK_BYTES", size)
            compiled = separators.compile_separator(separator)
            pieces = list(compiled.cut(io.BytesIO(text.encode())))
            assert compiled.occurs_in(io.BytesIO(text.encode())) is (len(pieces) > 1)
            return pieces

    whole = cut(10**6)
    assert cut(block_bytes) == whole
    assert all(text.encode()[start:].startswith(piece) for start, piece in whole)
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    assert [piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n").decode() for _, piece in whole] == plain.split(
        separator
    )


def test_the_time_of_cutting_a_long_text_is_linear_in_its_size(tmp_path, monkeypatch):
    """The separator occurs at the very end, so the whole text is one document that is searched."""
    from smallbatch.data import separators

    monkeypatch.setattr(separators, "BLOCK_BYTES", 2**17)

    def cpu_secs(size: int) -> float:
        path = tmp_path / f"{size}.txt"
        path.write_bytes(hashlib.shake_128(b"text").digest(64).hex().encode() * (size // 128) + b"<|end|>last")
        spec = data_spec(tmp_path, source=f"text:{path}", document_separator="<|end|>")
        times = []
        for _ in range(3):
            start = time.process_time()
            assert len(list(sources.documents(spec))) == 2
            times.append(time.process_time() - start)
        return min(times)

    # 4 times in linear time, 16 times in quadratic time; the smaller text may profit from the cache
    assert cpu_secs(64 * 2**20) < 8 * cpu_secs(16 * 2**20)
