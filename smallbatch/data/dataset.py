"""A prepared dataset on disk: one flat little-endian token file per split, and meta.json with counts and digests.

A directory is complete or does not exist, because `prepare` renames it into place.
"""

import dataclasses
import hashlib
import os
import typing
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smallbatch.errors import UserError
from smallbatch.files import json_files
from smallbatch.runs.progress import format_bytes, log
from smallbatch.runs.records import write_json

FORMAT_VERSION = 3
META_FILE = "meta.json"
TOKEN_FILES = {"train": "train.bin", "validation": "validation.bin"}
SLOW_BYTES = 2**30  # hashing takes a second or more
VERIFIED_FILE = "verified.json"  # {token file: [size, mtime_ns, inode]} when its digest was last verified


@dataclass(frozen=True)
class Counts:
    """The size of a part of a corpus; None if unknown."""

    documents: int | None
    bytes: int | None  # UTF-8 bytes of the documents
    tokens: int | None  # including end-of-document tokens


@dataclass(frozen=True)
class DatasetMeta:
    """The content of meta.json."""

    format_version: int
    source: str
    tokenizer: str
    vocab_size: int
    eod_id: int | None
    dtype: str  # uint16 | uint32
    train: Counts
    validation: Counts
    unused: Counts  # documents of the validation split beyond data.validation_max_bytes
    train_sha256: str
    validation_sha256: str
    sha256: str  # of the dataset
    split_rule: str
    libraries: dict[str, str]  # versions that built the dataset
    text_lost_frac: float | None = None  # fraction of the text's bytes that the tokenizer loses; None: not measured
    notes: list[str] = dataclasses.field(default_factory=list)  # warnings, printed each time the dataset is used


@dataclass(frozen=True)
class Dataset:
    """A prepared corpus: its directory, meta.json, and the memory-mapped tokens of both splits."""

    dir: Path
    meta: DatasetMeta
    train: np.ndarray
    validation: np.ndarray


def dtype_name(vocab_size: int) -> str:
    """Return the smallest stored type for all ids."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def little_endian(name: str) -> np.dtype:
    return np.dtype(name).newbyteorder("<")


def dataset_sha256(vocab_size: int, eod_id: int | None, train_sha256: str, validation_sha256: str) -> str:
    """Return one digest of everything in a dataset that a run depends on."""
    return hashlib.sha256(f"{vocab_size} {eod_id} {train_sha256} {validation_sha256}".encode()).hexdigest()


class TokenWriter:
    """Writes the tokens of one split. Counts them and computes their digest."""

    def __init__(self, directory: Path, split: str, dtype: str):
        self._file = (directory / TOKEN_FILES[split]).open("wb")
        self._dtype, self._digest = little_endian(dtype), hashlib.sha256()
        self.tokens = 0

    def write(self, parts: list[np.ndarray], eod_id: int | None) -> None:
        """Append parts of a token stream, or documents if eod_id is set: [eod] document [eod] document [eod]."""
        if eod_id is not None and parts:
            eod = np.array([eod_id])
            parts = [*([] if self.tokens else [eod]), *(part for document in parts for part in (document, eod))]
        if parts:
            tokens = np.concatenate([part.astype(self._dtype) for part in parts])
            data = tokens.tobytes()
            self._file.write(data)
            self._digest.update(data)
            self.tokens += len(tokens)

    def close(self) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def sha256(self) -> str:
        return self._digest.hexdigest()


def open_dataset(directory: Path) -> Dataset:
    """Open a prepared dataset after checking its meta.json, the size of its token files and the tokens.

    The validation split is always hashed. The training split is hashed only if the size, modification time or inode of
    its file differs from verified.json, which `prepare` and this function write.

    Raises: UserError if anything is damaged; the suggested fix is to delete the directory.
    """
    try:
        meta = _read_meta(directory)
        train, validation = (_open_tokens(directory, split, meta) for split in TOKEN_FILES)
        _verify_digests(directory, meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise UserError(
            f"the dataset is damaged ({reason}); delete the directory {directory} and prepare again"
        ) from error
    return Dataset(directory, meta, train, validation)


def _read_meta(directory: Path) -> DatasetMeta:
    values = json_files.parse((directory / META_FILE).read_bytes())
    counts = ("train", "validation", "unused")
    shape = typing.get_type_hints(DatasetMeta) | dict.fromkeys(counts, typing.get_type_hints(Counts))
    if problem := json_files.mismatch(values, shape | {"libraries": dict, "notes": [str]}):
        raise ValueError(f"in {META_FILE}, {problem}")
    if values["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format {values['format_version']}, but only format {FORMAT_VERSION} is supported")
    return DatasetMeta(**values | {name: Counts(**values[name]) for name in counts})


def _open_tokens(directory: Path, split: str, meta: DatasetMeta) -> np.ndarray:
    path, tokens = directory / TOKEN_FILES[split], getattr(meta, split).tokens
    size = tokens * little_endian(meta.dtype).itemsize
    if path.stat().st_size != size:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {size}")
    return mapped(path, meta.dtype)


def mapped(path: Path, dtype: str, offset_bytes: int = 0) -> np.ndarray:
    """Return the tokens of a file, memory-mapped."""
    # A plain view, because slicing an np.memmap takes 20 us.
    return np.asarray(np.memmap(path, dtype=little_endian(dtype), mode="r", offset=offset_bytes))


def remember_verified(directory: Path) -> None:
    """Write verified.json. In a read-only directory, nothing is written, and the tokens are hashed at every open."""
    with suppress(UserError, OSError):
        write_json(directory / VERIFIED_FILE, {name: _stamp(directory / name) for name in TOKEN_FILES.values()})


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _verify_digests(directory: Path, meta: DatasetMeta) -> None:
    """Raise ValueError if the digest of a token file differs from meta.json."""
    if meta.sha256 != dataset_sha256(meta.vocab_size, meta.eod_id, meta.train_sha256, meta.validation_sha256):
        raise ValueError(f"the digests in {META_FILE} are inconsistent")
    try:
        verified = json_files.read_object(directory / VERIFIED_FILE, {}, "the stamps of verified token files")
    except UserError:  # missing or damaged; the file only saves time
        verified = {}
    train, validation = (directory / name for name in TOKEN_FILES.values())
    _verify_digest(validation, meta.validation_sha256)
    if verified.get(train.name) != _stamp(train):
        _verify_digest(train, meta.train_sha256)
        remember_verified(directory)


def _verify_digest(path: Path, sha256: str) -> None:
    if (size := path.stat().st_size) >= SLOW_BYTES:
        log(f"verifying {path} ({format_bytes(size)}); this is repeated only if the file changes")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise ValueError(f"the tokens in {path.name} have changed since they were written: sha256 differs")
