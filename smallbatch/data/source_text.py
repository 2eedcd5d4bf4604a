"""`text:GLOB`: documents from .txt, .jsonl and .parquet files, in order of their paths.

A .txt file is one document, or is split into several at a separator. Each line of a .jsonl file and each row of a
.parquet file is one document. Text is never changed. .txt and .jsonl files may be compressed (.gz, .zst).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from smallbatch.data import corpus_files, separators
from smallbatch.data.corpus_files import Skipped
from smallbatch.errors import UserError
from smallbatch.files import json_files
from smallbatch.specs import DataSpec

ROWS_AT_ONCE = 256
FORMATS = "a .txt, .jsonl or .parquet file (.txt and .jsonl may be compressed: .txt.gz, .jsonl.zst)"
LFS_POINTERS = "Git LFS pointers, whose content `git lfs pull` fetches"


def identity(spec: DataSpec) -> dict[str, object]:
    separator = spec.document_separator and separators.unescape(spec.document_separator)
    files = [corpus_files.identity(path) for path in matched_files(spec.source, Skipped())]
    return {"files": files, "text_key": spec.text_key, "document_separator": separator}


def documents(spec: DataSpec, skipped: Skipped) -> Iterator[str]:
    """Yield the documents of each file: .txt is split at the separator; other formats have the text in one field.

    Git LFS pointers, and rows or lines whose text is null, are added to `skipped`.

    Raises: UserError for a file that cannot be read, or a separator that occurs in no file.
    """
    files = matched_files(spec.source, skipped)
    path = files[0]
    try:
        pointers = {path for path in files if corpus_files.is_lfs_pointer(path)}
        for path in sorted(pointers):
            skipped.add(LFS_POINTERS, str(path))
        files = [path for path in files if path not in pointers]
        if not files:
            raise UserError(
                f"all {len(pointers)} files are Git LFS pointers without text ({min(pointers)}); "
                "run `git lfs pull` in their repository"
            )
        pattern = None if spec.document_separator is None else _occurring_separator(spec.document_separator, files)
        for path in files:
            if _format(path) == ".txt":
                yield from _read_txt(path, pattern)
            else:
                reader = _read_jsonl if _format(path) == ".jsonl" else _read_parquet
                yield from reader(path, spec.text_key, skipped)
    except OSError as error:
        file = error.filename or path
        raise UserError(f"cannot read {file}: {error.strerror or error}; check its permissions") from error


def matched_files(source: str, skipped: Skipped) -> list[Path]:
    """Return the files of `text:GLOB`. Raises: UserError if a file does not have one of the `FORMATS`."""
    files = corpus_files.matched_files(source.removeprefix("text:"), "text:", skipped)
    others = [path for path in files if _format(path) not in (".txt", ".jsonl", ".parquet")]
    if others:
        raise UserError(
            f"{others[0]} is not {FORMATS} (one of {len(others)} such files among the {len(files)} that match "
            f"{source!r}); narrow the glob of data.source"
        )
    return files


def _format(path: Path) -> str:
    """Return the suffix that determines the format: .txt for a.txt and a.txt.gz, .gz for a.gz and a.parquet.gz."""
    inner = Path(path.stem).suffix
    return inner if path.suffix in corpus_files.COMPRESSION and inner in (".txt", ".jsonl") else path.suffix


def _occurring_separator(separator: str, files: list[Path]) -> re.Pattern[bytes]:
    """Return the compiled separator. Raises: UserError, before any file is tokenized, if it occurs in none."""
    pattern, shown = separators.compiled(separator), repr(separators.unescape(separator))
    text_files = [path for path in files if _format(path) == ".txt"]
    if any(pattern.search(corpus_files.mapped(path)) for path in text_files):
        return pattern
    if not text_files:
        raise UserError(
            f"data.document_separator={shown} applies only to .txt files, and none of the {len(files)} files is one; "
            "unset it: each line of .jsonl and each row of .parquet is a document"
        )
    raise UserError(
        f"data.document_separator={shown} occurs in none of the {len(text_files)} .txt files "
        f"({text_files[0]}); correct it (\\n is a line end, \\\\ a backslash), or unset it for one document per file"
    )


def _decode(data: bytes, path: Path, start_byte: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {start_byte + error.start}; convert it to UTF-8") from error


def _read_txt(path: Path, pattern: re.Pattern[bytes] | None) -> Iterator[str]:
    data = corpus_files.mapped(path)
    for start_byte, piece in [(0, data[:])] if pattern is None else separators.cut(data, pattern):
        yield _decode(piece, path, start_byte)


def _read_jsonl(path: Path, text_key: str, skipped: Skipped) -> Iterator[str]:
    start_byte = 0
    with corpus_files.open_bytes(path) as file:
        for number, data in enumerate(file, start=1):
            line, where = _decode(data, path, start_byte), f"{path}:{number}"
            start_byte += len(data)
            if line.isspace():
                continue
            try:
                record = json_files.parse_any(line)
            except ValueError as error:
                why = getattr(error, "msg", error)
                raise UserError(f"{where} is not valid JSON: {why}; correct or remove the line") from error
            if not isinstance(record, dict):
                raise UserError(f'{where} is not a JSON object; write lines such as {{"{text_key}": "..."}}')
            if text_key not in record:
                raise UserError(f"{where} has no key {text_key!r}; set data.text_key to one of: {', '.join(record)}")
            text = record[text_key]
            if text is None:
                skipped.add(f"lines whose {text_key!r} is null", where)
                continue
            if not isinstance(text, str):
                kind = type(text).__name__
                raise UserError(f"{where}: {text_key!r} is {kind}, not text; set data.text_key or correct the line")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{where}: half of a surrogate pair at character {error.start}; correct or remove the line"
                ) from error
            yield text


def _read_parquet(path: Path, text_key: str, skipped: Skipped) -> Iterator[str]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        columns = file.schema_arrow
        text_columns = [column.name for column in columns if _is_text(column.type)]
        if text_key not in text_columns:
            kind = f"is {columns.field(text_key).type}, not text" if text_key in columns.names else "does not exist"
            fix = f"set data.text_key to one of: {', '.join(text_columns)}" if text_columns else "add a text column"
            raise UserError(f"{path}: column {text_key!r} {kind}; {fix}")
        row = 0
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[text_key]):
            for text in batch.column(0).to_pylist():
                if text is None:
                    skipped.add(f"rows whose {text_key!r} is null", f"{path}: row {row}")
                else:
                    yield text
                row += 1
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a readable parquet file ({reason}); write or copy it again") from error


def _is_text(kind) -> bool:
    """Return whether an Arrow type is text (string, large_string, string_view, or a dictionary of them)."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
