"""The dataset on disk: flat little-endian token shards beside a meta.json that counts and seals them.

A directory is complete or not there at all: `prepare` renames it into place. A split is one stream of tokens,
and where its shards are cut changes nothing for its readers.
"""

import dataclasses
import hashlib
import json
import typing
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smallbatch.errors import UserError
from smallbatch.files import json_files
from smallbatch.runs.progress import format_bytes, log
from smallbatch.runs.records import write_json

FORMAT_VERSION = 2
META_FILE = "meta.json"
COUNTS = ("train", "validation", "unused")
SLOW_BYTES = 2**30  # hashing takes a second or more
VERIFIED_FILE = "verified.json"  # {shard: [size, mtime_ns, inode]} when its digest was last verified


@dataclass(frozen=True)
class Counts:
    """How much of a corpus; None where the corpus does not say."""

    documents: int | None
    bytes: int | None  # UTF-8 bytes of the documents
    tokens: int | None  # end-of-document tokens included


@dataclass(frozen=True)
class DatasetMeta:
    """What meta.json holds. The digests seal the tokens, however they are cut into shards."""

    format_version: int
    source: str
    tokenizer: str
    vocab_size: int
    eod_id: int | None
    dtype: str  # uint16 | uint32
    tokens_per_shard: int
    train: Counts
    validation: Counts
    unused: Counts  # held out beyond data.validation_max_bytes
    train_sha256: str
    validation_sha256: str
    sha256: str  # of the dataset
    split_rule: str
    libraries: dict[str, str]
    text_lost_frac: float | None = None  # fraction of the text's bytes that the tokenizer loses; None: not measured
    notes: list[str] = dataclasses.field(default_factory=list)  # warnings, printed each time the dataset is used


def shard_name(split: str, number: int) -> str:
    return f"{split}_{number:05d}.bin"


def dtype_name(vocab_size: int) -> str:
    """Return the smallest stored type that holds every id."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def little_endian(name: str) -> np.dtype:
    return np.dtype(name).newbyteorder("<")


def dataset_sha256(vocab_size: int, eod_id: int | None, train_sha256: str, validation_sha256: str) -> str:
    """Return one digest for all that a run sees of a dataset."""
    return hashlib.sha256(f"{vocab_size} {eod_id} {train_sha256} {validation_sha256}".encode()).hexdigest()


class ShardWriter:
    """Appends tokens to one split, a new file every `tokens_per_shard`, and counts what it writes."""

    def __init__(self, directory: Path, split: str, dtype: str, tokens_per_shard: int):
        self._directory, self._split = directory, split
        self._dtype, self._tokens_per_shard = little_endian(dtype), tokens_per_shard
        self._digest, self._file = hashlib.sha256(), None
        self.documents = self.tokens = 0

    def write_documents(self, documents: list[np.ndarray], eod_id: int) -> None:
        """Append documents so that the whole split reads [eod] document [eod] document [eod]."""
        if not documents:
            return
        eod = np.array([eod_id], dtype=self._dtype)
        if not self.documents:
            self.write(eod)
        self.write(np.concatenate([part.astype(self._dtype) for document in documents for part in (document, eod)]))
        self.documents += len(documents)

    def write(self, tokens: np.ndarray) -> None:
        tokens = tokens.astype(self._dtype)
        while len(tokens):
            filled = self.tokens % self._tokens_per_shard
            if filled == 0:
                self.close()
                name = shard_name(self._split, self.tokens // self._tokens_per_shard)
                self._file = (self._directory / name).open("wb")
            assert self._file is not None
            part, tokens = np.split(tokens, [self._tokens_per_shard - filled])
            data = part.tobytes()
            self._file.write(data)
            self._digest.update(data)
            self.tokens += len(part)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def sha256(self) -> str:
        return self._digest.hexdigest()


class TokenArray:
    """The tokens of one split: memory-mapped shards that read as one array."""

    def __init__(self, shards: list[np.ndarray]):
        self._shards = shards
        self._tokens_per_shard = len(shards[0])
        self._tokens = sum(len(shard) for shard in shards)

    def __len__(self) -> int:
        return self._tokens

    def window(self, start: int, length: int) -> np.ndarray:
        """Return tokens [start, start + length) in their stored type, read-only or a copy.

        Raises: IndexError for a window that is not wholly inside.
        """
        if not 0 <= start <= start + length <= self._tokens:
            raise IndexError(f"tokens {start} to {start + length} of {self._tokens}")
        number, offset = divmod(start, self._tokens_per_shard)
        parts = []
        while length:
            parts.append(self._shards[number][offset : offset + length])
            length -= len(parts[-1])
            number, offset = number + 1, 0
        return parts[0] if len(parts) == 1 else np.concatenate([self._shards[0][:0], *parts])


@dataclass(frozen=True)
class Dataset:
    """A prepared corpus: its directory, what is known of it, and the tokens of both splits."""

    dir: Path
    meta: DatasetMeta
    train: TokenArray
    validation: TokenArray


def write_meta(directory: Path, meta: DatasetMeta) -> None:
    """Write meta.json into a directory that is not in place yet: it is synced and renamed as a whole."""
    text = json.dumps(dataclasses.asdict(meta), indent=2, allow_nan=False)
    (directory / META_FILE).write_text(text + "\n", encoding="utf-8")


def open_dataset(directory: Path) -> Dataset:
    """Open a prepared dataset, checking its meta.json, the size of every shard and the tokens.

    The validation split is always hashed. The training split is hashed only if the size, modification time or inode of
    a shard differs from verified.json, which `prepare` and this function write.

    Raises: UserError if anything is damaged; the suggested fix is to delete the directory.
    """
    try:
        meta = _read_meta(directory)
        train = _open_split(directory, "train", meta.train, meta)
        validation = _open_split(directory, "validation", meta.validation, meta)
        _verify_digests(directory, meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise UserError(
            f"the dataset is damaged ({reason}); delete the directory {directory} and prepare again"
        ) from error
    return Dataset(directory, meta, train, validation)


def split_files(directory: Path, split: str) -> list[Path]:
    """Return the shards of a split in order."""
    return sorted(directory.glob(f"{split}_*.bin"))


def remember_verified(directory: Path) -> None:
    """Write verified.json, unless the directory is read-only; its training split is then hashed at every open."""
    stamps = {path.name: _stamp(path) for split in ("train", "validation") for path in split_files(directory, split)}
    with suppress(UserError, OSError):
        write_json(directory / VERIFIED_FILE, stamps)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _verified_stamps(directory: Path) -> dict[str, object]:
    """Return the content of verified.json, which only saves time; {} if it is missing or damaged."""
    try:
        return json_files.read_object(directory / VERIFIED_FILE, {}, "the stamps of verified token shards")
    except UserError:
        return {}


def _verify_digests(directory: Path, meta: DatasetMeta) -> None:
    verified = _verified_stamps(directory)
    files = {split: _shard_paths(directory, split, meta) for split in ("train", "validation")}
    changed = [path.name for paths in files.values() for path in paths if verified.get(path.name) != _stamp(path)]
    _verify_split("validation", files["validation"], meta.validation_sha256, changed)
    if any(path.name in changed for path in files["train"]):
        _verify_split("train", files["train"], meta.train_sha256, changed)
        remember_verified(directory)
    if meta.sha256 != dataset_sha256(meta.vocab_size, meta.eod_id, meta.train_sha256, meta.validation_sha256):
        raise ValueError(f"the digests in {META_FILE} are inconsistent")


def _shard_paths(directory: Path, split: str, meta: DatasetMeta) -> list[Path]:
    tokens = getattr(meta, split).tokens
    return [directory / shard_name(split, number) for number in range(-(-tokens // meta.tokens_per_shard))]


def _verify_split(split: str, paths: list[Path], sha256: str, changed: list[str]) -> None:
    """Raise ValueError if the digest differs. The error names the shards in `changed`, or all shards if none is."""
    digest = hashlib.sha256()
    size_bytes = sum(path.stat().st_size for path in paths)
    if size_bytes >= SLOW_BYTES:
        log(f"verifying the {split} tokens ({format_bytes(size_bytes)}) in {paths[0].parent}; repeated if files change")
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    if digest.hexdigest() != sha256:
        names = [path.name for path in paths]
        suspects = [name for name in names if name in changed] or names
        raise ValueError(f"the tokens in {', '.join(suspects)} have changed since they were written: sha256 differs")


def _read_meta(directory: Path) -> DatasetMeta:
    values = json_files.parse((directory / META_FILE).read_bytes())
    shape = typing.get_type_hints(DatasetMeta) | dict.fromkeys(COUNTS, typing.get_type_hints(Counts))
    if problem := json_files.mismatch(values, shape | {"libraries": dict, "notes": [str]}):
        raise ValueError(f"in {META_FILE}, {problem}")
    if values["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format {values['format_version']} where this version reads {FORMAT_VERSION}")
    for name in COUNTS:
        values[name] = Counts(**values[name])
    return DatasetMeta(**values)


def _open_split(directory: Path, split: str, counts: Counts, meta: DatasetMeta) -> TokenArray:
    dtype, shards, left = little_endian(meta.dtype), [], counts.tokens or 0
    if left < 1 or meta.tokens_per_shard < 1:
        raise ValueError(f"{META_FILE} counts no {split} tokens")
    while left > 0:
        path = directory / shard_name(split, len(shards))
        tokens = min(left, meta.tokens_per_shard)
        if path.stat().st_size != tokens * dtype.itemsize:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {tokens * dtype.itemsize}")
        # A plain view: slicing np.memmap itself costs 20 us.
        shards.append(np.asarray(np.memmap(path, dtype=dtype, mode="r")))
        left -= tokens
    return TokenArray(shards)
