"""Documents from .txt, .jsonl and .parquet files, streamed in order of their paths and never altered.

A .txt file is one document or is cut at a separator; a .jsonl line and a .parquet row are one each.
"""

import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path

from smallbatch import paths
from smallbatch.errors import UserError

BLOCK_BYTES = 2**20
ROWS_AT_ONCE = 256


def matched_files(pattern: str) -> list[Path]:
    """Return the files that a glob matches (`**` crosses directories), sorted by path.

    Raises: UserError if nothing matches or a file has another ending than .txt, .jsonl or .parquet.
    """
    pattern = str(paths.local(pattern, "data.source: text:"))
    found = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
    files = sorted((Path(name) for name in found if os.path.isfile(name)), key=lambda path: path.as_posix())
    if not files:
        fix = "check data.source=text:GLOB (`**` crosses directories)"
        if os.path.isdir(pattern):
            fix = f"it is a directory: write text:{os.path.join(pattern, '**', '*.txt')}"
        raise UserError(f"no file matches {pattern!r}; {fix}")
    unreadable = [path for path in files if path.suffix not in READERS]
    if unreadable:
        raise UserError(
            f"{unreadable[0]} is not a .txt, .jsonl or .parquet file ({len(unreadable)} such of {len(files)} "
            f"that match {pattern!r}); narrow the glob of data.source"
        )
    return files


def documents(files: list[Path], text_key: str, separator: str | None) -> Iterator[str]:
    """Yield the documents of each file; `separator` cuts .txt files, `text_key` names the others' field."""
    if separator == "":
        raise UserError("data.document_separator='' cuts nowhere; unset it to keep each .txt file whole")
    for path in files:
        try:
            yield from READERS[path.suffix](path, text_key, separator)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _decode(data: bytes, path: Path, start_byte: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {start_byte + error.start}; convert it to UTF-8") from error


def _read_txt(path: Path, text_key: str, separator: str | None) -> Iterator[str]:
    if separator is None:
        yield _decode(path.read_bytes(), path, 0)
        return
    cut = separator.encode("utf-8")
    start_byte, rest = 0, b""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            *pieces, rest = (rest + block).split(cut)
            for piece in pieces:
                yield _decode(piece, path, start_byte)
                start_byte += len(piece) + len(cut)
    yield _decode(rest, path, start_byte)


def _read_jsonl(path: Path, text_key: str, separator: str | None) -> Iterator[str]:
    start_byte = 0
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            line = _decode(data, path, start_byte)
            start_byte += len(data)
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number} is not a line of JSON: {error.msg}; mend or drop it") from error
            yield _text_of(record, text_key, f"{path}:{number}")


def _text_of(record: object, text_key: str, place: str) -> str:
    if not isinstance(record, dict):
        raise UserError(f'{place} is not a JSON object; a line looks like {{"{text_key}": "..."}}')
    if text_key not in record:
        raise UserError(f"{place} has no key {text_key!r}; set data.text_key to one of: {', '.join(record)}")
    text = record[text_key]
    if not isinstance(text, str):
        raise UserError(f"{place}: {text_key!r} holds {type(text).__name__}, not text; set data.text_key or mend it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: half of a surrogate pair at character {error.start}; mend or drop it") from error
    return text


def _read_parquet(path: Path, text_key: str, separator: str | None) -> Iterator[str]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path} needs pyarrow: pip install 'smallbatch[parquet]'") from error
    try:
        file = parquet.ParquetFile(path)
        columns = file.schema_arrow
        if text_key not in columns.names:
            raise UserError(
                f"{path} has no column {text_key!r}; set data.text_key to one of: {', '.join(columns.names)}"
            )
        kind = columns.field(text_key).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{path}: column {text_key!r} holds {kind}, not text; set data.text_key to a text column")
        row = 0
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[text_key]):
            for text in batch.column(0).to_pylist():
                if text is None:
                    raise UserError(f"{path}: row {row} of column {text_key!r} is null; drop such rows")
                yield text
                row += 1
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not a readable parquet file ({str(error).splitlines()[0]}); make it anew"
        ) from error


READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
