"""Read documents from .txt, .jsonl and .parquet files, in order of their paths.

A .txt file is one document, or is split into several at a separator. Each line of a .jsonl file and each row of a
.parquet file is one document. Text is never changed. .txt and .jsonl files may be compressed (.gz, .zst).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from smallbatch.data import compressed, file_glob
from smallbatch.data.separators import Separator, compile_separator, unescape
from smallbatch.errors import UserError
from smallbatch.files import json_files, paths

ROWS_AT_ONCE = 256
EXAMPLES_NAMED = 3
FORMATS = "a .txt, .jsonl or .parquet file (.txt and .jsonl may be compressed: .txt.gz, .jsonl.zst)"


@dataclass
class Skipped:
    """Counts of the skipped parts of a corpus (files, rows, lines) by kind, with the first few as examples."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, example: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        named = self.examples.setdefault(what, [])
        if len(named) < EXAMPLES_NAMED:
            named.append(example)

    def lines(self) -> list[str]:
        """Return one line for each kind."""
        return [
            f"skipped {what}: {count:,} ({', '.join(self.examples[what])}{', ...' if count > EXAMPLES_NAMED else ''})"
            for what, count in self.counts.items()
        ]


DANGLING = "links without a target"
LFS_POINTERS = "Git LFS pointers, whose content `git lfs pull` fetches"


def matched_files(pattern: str, skipped: Skipped | None = None) -> list[Path]:
    """Return the files that match a glob, sorted by path; broken links are added to `skipped`.

    Raises: UserError if nothing matches, or a file does not have one of the `FORMATS`.
    """
    pattern = str(paths.local(pattern, "data.source: text:"))
    matches = file_glob.match(pattern)
    skipped = Skipped() if skipped is None else skipped
    for path in matches.dangling_links:
        skipped.add(DANGLING, str(path))
    if not matches.files:
        fix = "check data.source=text:GLOB (`**` crosses directories)"
        if os.path.isdir(pattern):
            fix = f"it is a directory: write text:{os.path.join(pattern, '**', '*.txt')}"
        if matches.dangling_links:
            fix = f"{skipped.lines()[0]}; restore the targets"
        raise UserError(f"no file matches {pattern!r}; {fix}")
    unreadable = [path for path in matches.files if _format(path) not in READERS]
    if unreadable:
        raise UserError(
            f"{unreadable[0]} is not {FORMATS} (one of {len(unreadable)} such files among the {len(matches.files)} "
            f"that match {pattern!r}); narrow the glob of data.source"
        )
    return matches.files


def documents(files: list[Path], text_key: str, separator: str | None, skipped: Skipped | None = None) -> Iterator[str]:
    """Yield the documents of each file: .txt is split at `separator`; other formats have the text in field `text_key`.

    Git LFS pointers, and rows or lines whose text is null, are skipped and added to `skipped`.
    Raises: UserError for a file that cannot be read, or a separator that occurs in no file.
    """
    skipped = Skipped() if skipped is None else skipped
    try:
        pointers = {path for path in files if file_glob.is_lfs_pointer(path)}
        for path in sorted(pointers):
            skipped.add(LFS_POINTERS, str(path))
        files = [path for path in files if path not in pointers]
        if not files:
            raise UserError(
                f"all {len(pointers)} files are Git LFS pointers without text ({min(pointers)}); "
                "run `git lfs pull` in their repository"
            )
        cut = None if separator is None else _occurring_separator(separator, files)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror or error}") from error
    for path in files:
        try:
            yield from READERS[_format(path)](path, text_key, cut, skipped)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _format(path: Path) -> str:
    """Return the suffix that determines the format: .txt for a.txt and a.txt.gz, .gz for a.gz and a.parquet.gz."""
    inner = Path(path.stem).suffix
    return inner if path.suffix in compressed.ENDINGS and inner in (".txt", ".jsonl") else path.suffix


def _occurring_separator(separator: str, files: list[Path]) -> Separator:
    """Return the compiled separator. Raises: UserError, before any file is tokenized, if it occurs in none."""
    compiled, shown = compile_separator(separator), repr(unescape(separator))
    text_files = [path for path in files if _format(path) == ".txt"]
    for path in text_files:
        with compressed.open_bytes(path) as file:
            if compiled.occurs_in(file):
                return compiled
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


def _read_txt(path: Path, text_key: str, separator: Separator | None, skipped: Skipped) -> Iterator[str]:
    with compressed.open_bytes(path) as file:
        for start_byte, piece in [(0, file.read())] if separator is None else separator.cut(file):
            yield _decode(piece, path, start_byte)


def _read_jsonl(path: Path, text_key: str, separator: Separator | None, skipped: Skipped) -> Iterator[str]:
    start_byte = 0
    with compressed.open_bytes(path) as file:
        for number, data in enumerate(file, start=1):
            line = _decode(data, path, start_byte)
            start_byte += len(data)
            if line.isspace():
                continue
            try:
                record = json_files.parse_any(line)
            except ValueError as error:
                why = getattr(error, "msg", error)
                raise UserError(f"{path}:{number} is not a line of JSON: {why}; correct or remove the line") from error
            if isinstance(record, dict) and record.get(text_key, "") is None:
                skipped.add(f"lines whose {text_key!r} is null", f"{path}:{number}")
                continue
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


def _read_parquet(path: Path, text_key: str, separator: Separator | None, skipped: Skipped) -> Iterator[str]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path} needs pyarrow: pip install 'smallbatch[parquet]'") from error
    try:
        file = parquet.ParquetFile(path)
        columns = file.schema_arrow
        text_columns = [column.name for column in columns if _holds_text(column.type)]
        if text_key not in text_columns:
            kind = f"holds {columns.field(text_key).type}, not text" if text_key in columns.names else "does not exist"
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
        raise UserError(
            f"{path} is not a readable parquet file ({str(error).splitlines()[0]}); make it anew"
        ) from error


def _holds_text(kind) -> bool:
    """Return whether an Arrow type is text (string, large_string, string_view, or a dictionary of them)."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
