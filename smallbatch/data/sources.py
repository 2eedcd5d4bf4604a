"""Where documents come from: for each form of `data.source` an ordered stream of texts and its identity."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from smallbatch.data import text_files, tfds_source, token_file
from smallbatch.data.separators import unescape
from smallbatch.errors import UserError
from smallbatch.files import paths
from smallbatch.specs import DataSpec

FORMS = "pystdlib, tfds:NAME, text:GLOB or tokens:PATH"


def split_source(source: str) -> tuple[str, str]:
    """Return the kind of a source and what follows its colon: 'tfds:c4/en' -> ('tfds', 'c4/en')."""
    kind, _, rest = source.partition(":")
    if (kind == "pystdlib" and source == kind) or (kind in ("tfds", "text", "tokens") and rest):
        return kind, rest
    raise UserError(f"data.source={source!r} is not one of {FORMS}")


def validation_spec(spec: DataSpec) -> DataSpec | None:
    """Return the spec that reads all of data.validation_source as the validation set; None if it is unset."""
    source = spec.validation_source
    if source is None:
        return None
    kind, rest = source.partition(":")[::2]
    given = replace(spec, validation_source=None, validation_frac=1.0)
    if kind == "split" and rest:
        if not spec.source.startswith("tfds:"):
            raise UserError(
                f"data.validation_source={source!r} needs data.source=tfds:NAME, not {spec.source!r}; use text:GLOB "
                "or tokens:GLOB"
            )
        if rest == spec.split:
            raise UserError(f"data.validation_source={source!r} is data.split, the training set; choose another split")
        return replace(given, split=rest)
    if kind not in ("text", "tokens") or not rest:
        raise UserError(f"data.validation_source={source!r} is unknown; use text:GLOB, tokens:GLOB or split:NAME")
    if (kind == "tokens") is not spec.source.startswith("tokens:"):
        raise UserError(
            f"data.validation_source={source!r} and data.source={spec.source!r} do not share a tokenizer; use "
            "tokens:GLOB for both, or text:GLOB with a text source"
        )
    return replace(given, source=source)


def documents(spec: DataSpec, skipped: text_files.Skipped | None = None) -> Iterator[str]:
    """Yield the documents of a corpus in a fixed order, with one in memory at a time; blank documents are omitted.

    Files, rows and lines without text are added to `skipped`.

    Raises: UserError for a corpus that is missing, damaged or without text.
    """
    empty = True
    for text in _all_documents(spec, skipped):
        if text and not text.isspace():
            empty = False
            yield text
    if empty:
        raise UserError(f"data.source={spec.source!r} holds no text; check the corpus")


def _all_documents(spec: DataSpec, skipped: text_files.Skipped | None) -> Iterator[str]:
    kind, rest = split_source(spec.source)
    if kind == "pystdlib":
        return tfds_source.pystdlib_documents(paths.local(spec.tfds_data_dir or f"{spec.cache_dir}/tfds"))
    if kind == "tfds":
        data_dir = None if spec.tfds_data_dir is None else str(paths.local(spec.tfds_data_dir, "data.tfds_data_dir"))
        return tfds_source.documents(rest, spec.split, spec.text_key, data_dir)
    if kind == "text":
        files = text_files.matched_files(rest, skipped)
        return text_files.documents(files, spec.text_key, spec.document_separator, skipped)
    raise UserError(f"data.source={spec.source!r} holds tokens, not documents")


def identity(spec: DataSpec) -> dict[str, object]:
    """Return, as plain JSON values, all that decides which documents `documents` yields.

    Files count by path, size and time of change, so that a changed corpus is prepared anew without reading it
    all. A TFDS dataset counts by name and data directory: `tfds:NAME:VERSION` pins its version.
    """
    kind, rest = split_source(spec.source)
    if kind == "pystdlib":
        return {"source": kind, "python": "{}.{}.{}".format(*sys.version_info[:3])}
    if kind == "tfds":
        return {
            "source": spec.source,
            "split": spec.split,
            "text_key": spec.text_key,
            "tfds_data_dir": spec.tfds_data_dir,
        }
    if kind == "text":
        files = [file_identity(path) for path in text_files.matched_files(rest)]
        separator = spec.document_separator and unescape(spec.document_separator)
        return {"files": files, "text_key": spec.text_key, "document_separator": separator}
    files = [file_identity(path) for path in token_file.matched_files(rest)]
    return {
        "file": files[0] if len(files) == 1 else files,
        "dtype": spec.tokens_dtype,
        "vocab_size": spec.tokens_vocab_size,
        "eod_id": spec.tokens_eod_id,
    }


def file_identity(path: Path) -> list[object]:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return [str(paths.resolved(path)), status.st_size, status.st_mtime_ns]


def size_bytes(spec: DataSpec) -> int | None:
    """Return the size of plain text files for a progress bar; None where it is known only after reading."""
    kind, rest = split_source(spec.source)
    if kind != "text":
        return None
    files = text_files.matched_files(rest)
    return sum(path.stat().st_size for path in files) if all(path.suffix == ".txt" for path in files) else None
