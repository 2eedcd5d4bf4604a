"""Read the rows of a CSV or Parquet file without guessing types or changing values."""

import codecs
import csv
import glob
import gzip
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallbatch.errors import UserError
from smallbatch.files import paths

DELIMITERS = (",", ";", "\t", "|")
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class RowsFile:
    """Rows of a file. Values of a CSV are text; an empty one is None."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    notes: tuple[str, ...] = ()


def load(path: Path) -> RowsFile:
    """Return the rows of a file. Raises UserError unless it is Parquet, or a CSV with a header line."""
    if not paths.is_file(path):
        raise UserError(f"--csv={path} does not exist; give the path of a CSV or Parquet file")
    found = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    if twice := [column for column, times in Counter(found.columns).items() if times > 1]:
        raise UserError(f"{path} has several columns {twice[0]!r}; rename or remove all but one")
    return found


def _parquet(path: Path) -> RowsFile:
    import duckdb

    try:
        with duckdb.connect() as connection:
            # DuckDB treats brackets as glob patterns, so escape the path. Hive partitioning would add columns.
            query = "select * from read_parquet(?, hive_partitioning=false)"
            cursor = connection.execute(query, [glob.escape(str(path))])
            return RowsFile([column[0] for column in cursor.description or []], cursor.fetchall())
    except duckdb.Error as error:
        first = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"cannot read {path}: {first}; give a CSV with a header line, or Parquet") from error


def _csv(path: Path) -> RowsFile:
    """Return the rows of a CSV file. A line that starts with # is a comment; # anywhere else is data."""
    text = _text(path)
    head = next((line for line in io.StringIO(text, newline="") if line.strip() and not line.startswith("#")), None)
    if head is None:
        raise UserError(f"{path} is empty; give a CSV with a header line, or Parquet")
    delimiter = max(DELIMITERS, key=lambda mark: len(next(csv.reader([head], delimiter=mark))))
    comments: list[str] = []
    records = _records(path, text, delimiter, comments)
    columns = [name.strip() or f"column{i}" for i, name in enumerate(next(records))]
    comments.clear()  # only a comment below the header could be a row that starts with #
    rows = []
    for fields in records:
        if not any(field.strip() for field in fields):
            continue
        if len(fields) != len(columns):
            raise UserError(
                f"{path}, row {len(rows) + 1} has {len(fields)} values ({delimiter.join(fields)[:80]!r}), but the "
                f"header has {len(columns)} columns; put quotes around a value that contains {delimiter!r}"
            )
        rows.append(tuple(field or None for field in fields))
    notes = ()
    if comments:
        first = comments[0].strip()[:60]
        notes = (f"{path.name}: skipped {len(comments)} comments (#) below the header, the first is {first!r}",)
    return RowsFile(columns, rows, notes)


def _records(path: Path, text: str, delimiter: str, comments: list[str]) -> Iterator[list[str]]:
    """Yield the fields of each record; collect comment lines, which occur only between records."""
    between = True

    def lines() -> Iterator[str]:
        nonlocal between
        for line in io.StringIO(text, newline=""):
            if between and line.startswith("#"):
                comments.append(line)
                continue
            between = False
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            between = True
            if fields:
                yield fields
    except csv.Error as error:
        raise UserError(
            f"cannot read {path}, line {reader.line_num}: {error}; put quotes around a value with quotes or "
            'line ends, and write " inside it as ""'
        ) from error


def _text(path: Path) -> str:
    """Return the decoded text of a file in UTF-8, or UTF-16 with a byte order mark; decompress .gz."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read {path}: byte {error.start} is {content[error.start : error.start + 1]!r}, not "
            f"{encoding.upper()}; save it as a CSV in UTF-8, or as Parquet"
        ) from error
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}; check the file and its permissions") from error
