"""`tokens:GLOB` to shards: flat little-endian files of token ids, as nanoGPT, llm.c and Marek et al. write them.

Several files are concatenated in order of their paths. The header of llm.c (also used by modded-nanogpt) is recognised,
checked against the file and skipped. With `data.tokens_eod_id`, the stream is split into documents after these tokens,
and documents are assigned to the validation split by a hash of their tokens (as uint32, so the hash does not depend on
the stored type). Without it, the end of the stream is the validation set. `data.validation_max_bytes` counts bytes of
the files.
"""

import glob
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from smallbatch.data.file_glob import is_lfs_pointer
from smallbatch.data.shards import Counts, ShardWriter, little_endian
from smallbatch.data.validation_split import Splitter
from smallbatch.errors import UserError
from smallbatch.files import paths
from smallbatch.runs.progress import Progress
from smallbatch.specs import DataSpec

BLOCK_TOKENS = 2**22
HEADER_BYTES = 1024  # of llm.c: 256 int32; the first three are magic number, version and number of tokens
HEADERS = {(20240520, 1): "uint16", (20240801, 7): "uint32"}  # llm.c: dev/data/data_common.py
TAIL_RULE = (
    "The last validation_frac of the tokens is held out. It is the validation set up to "
    "validation_max_bytes of stored tokens; the rest of it is unused."
)


def vocab_size(spec: DataSpec) -> int:
    """Return data.tokens_vocab_size. Raises: UserError if it is unset or does not fit data.tokens_eod_id."""
    size, eod_id = spec.tokens_vocab_size, spec.tokens_eod_id
    if size is None:
        raise UserError(
            "data.tokens_vocab_size is unset, and data.source=tokens:GLOB needs it; set it to the vocabulary size of "
            "the tokenizer"
        )
    if eod_id is not None and not 0 <= eod_id < size:
        raise UserError(f"data.tokens_eod_id={eod_id} is not one of the {size} ids of data.tokens_vocab_size")
    return size


def matched_files(pattern: str) -> list[Path]:
    """Return the files that match a path or a glob, sorted by path. Raises: UserError if there is none."""
    path = paths.local(pattern, "data.source: tokens:")
    if paths.exists(path) or not glob.has_magic(str(path)):
        return [path]
    files = sorted({Path(name) for name in glob.glob(str(path), recursive=True) if not Path(name).is_dir()})
    if not files:
        raise UserError(f"no file matches {str(path)!r}; check the path and the pattern of tokens:GLOB")
    return files


def write_splits(
    spec: DataSpec, pattern: str, train: ShardWriter, validation: ShardWriter
) -> tuple[Counts, Counts, Counts]:
    """Write both splits of checked token files; return the counts of train, validation and unused."""
    files = matched_files(pattern)
    tokens = _Concatenated(_open_all(files, spec.tokens_dtype))
    for path, part in zip(files, tokens.parts, strict=True):
        _check_ids(part, vocab_size(spec), path)
    with Progress("prepare", len(tokens), unit="tokens") as progress:
        if spec.tokens_eod_id is None:
            return _write_tail_split(spec, tokens, train, validation, progress)
        return _write_document_split(spec, tokens, spec.tokens_eod_id, train, validation, progress)


class _Concatenated:
    """Arrays of tokens with the length and slices of their concatenation."""

    def __init__(self, parts: list[np.ndarray]):
        self.parts, self.itemsize = parts, parts[0].itemsize
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, wanted: slice) -> np.ndarray:
        start, stop, _ = wanted.indices(len(self))
        found = [self.parts[0][:0]]
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            part, first = self.parts[number], int(self._ends[number]) - len(self.parts[number])
            found.append(part[start - first : stop - first])
            start, number = int(self._ends[number]), number + 1
        return found[1] if len(found) == 2 else np.concatenate(found)


def _open_all(files: list[Path], dtype_name: str) -> list[np.ndarray]:
    if dtype_name not in ("uint16", "uint32"):
        raise UserError(f"data.tokens_dtype={dtype_name!r} is neither uint16 nor uint32")
    headers = {path: _header(path) for path in files}
    bare = [path for path, header in headers.items() if header is None]
    if bare and len(bare) < len(files):
        other = next(path for path, header in headers.items() if header is not None)
        raise UserError(
            f"{other} has the header of llm.c and {bare[0]} has none; all files of tokens:GLOB must have it, or none: "
            "narrow the glob"
        )
    return [_open(path, dtype_name, header) for path, header in headers.items()]


def _header(path: Path) -> tuple[str, int] | None:
    """Return the token type and the number of tokens in the header of a file, None if it has none."""
    try:
        with path.open("rb") as file:
            first = np.frombuffer(file.read(12).ljust(12, b"\0"), dtype="<u4").tolist()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    magic, version, tokens = first
    if (magic, version) in HEADERS:
        return HEADERS[magic, version], tokens
    known_versions = dict(tuple(HEADERS))
    if magic in known_versions:
        raise UserError(
            f"{path} has an llm.c header of version {version}, and only version {known_versions[magic]} is supported; "
            "write the file with that version, or without a header"
        )
    return None


def _open(path: Path, dtype_name: str, header: tuple[str, int] | None) -> np.ndarray:
    """Return the tokens of a file, memory-mapped, without its header."""
    dtype = little_endian(dtype_name)
    offset = HEADER_BYTES if header else 0
    if header and header[0] != dtype_name:
        raise UserError(
            f"{path} has {header[0]} tokens according to its header, and data.tokens_dtype is {dtype_name}; set "
            f"data.tokens_dtype={header[0]}, and match only files of this type with tokens:GLOB"
        )
    try:
        if is_lfs_pointer(path):
            raise UserError(f"{path} is a Git LFS pointer, not its content; run `git lfs pull` in its repository")
        size = path.stat().st_size
        if header and size != HEADER_BYTES + header[1] * dtype.itemsize:
            raise UserError(
                f"{path} has {size} bytes, and with the {header[1]} {dtype_name} tokens of its header it should have "
                f"{HEADER_BYTES + header[1] * dtype.itemsize}; it is truncated or damaged: copy it again"
            )
        if size <= offset or size % dtype.itemsize:
            raise UserError(
                f"{path} has {size} bytes, which is no whole number of {dtype_name} tokens; "
                "check data.tokens_dtype and the file"
            )
        # A plain view, because slicing an np.memmap takes 20 us.
        tokens = np.asarray(np.memmap(path, dtype=dtype, mode="r", offset=offset))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if tokens[:3].tobytes()[:6] == b"\x93NUMPY":
        raise UserError(f"{path} is a .npy file with a header; write the bare tokens with array.tofile(PATH)")
    return tokens


def _check_ids(tokens: np.ndarray, vocab: int, path: Path) -> None:
    for start in range(0, len(tokens), BLOCK_TOKENS):
        wrong = tokens[start : start + BLOCK_TOKENS] >= vocab
        if wrong.any():
            position = start + int(wrong.argmax())
            raise UserError(
                f"{path}: token {position} is {tokens[position]}, outside data.tokens_vocab_size={vocab}; "
                "check that number and data.tokens_dtype"
            )


def _write_tail_split(spec, tokens, train, validation, progress) -> tuple[Counts, Counts, Counts]:
    held_out = int(len(tokens) * spec.validation_frac)
    used = min(held_out, spec.validation_max_bytes // tokens.itemsize)
    cut = len(tokens) - held_out
    for start in range(0, cut, BLOCK_TOKENS):
        train.write(tokens[start : min(start + BLOCK_TOKENS, cut)])
        progress.update(start)
    validation.write(tokens[cut : cut + used])
    progress.update(len(tokens))
    return Counts(None, None, cut), Counts(None, None, used), Counts(None, None, held_out - used)


def _write_document_split(spec, tokens, eod_id, train, validation, progress) -> tuple[Counts, Counts, Counts]:
    splitter = Splitter(spec.validation_frac, spec.validation_max_bytes)
    for documents, done in _documents(tokens, eod_id):
        kept: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "unused": []}
        for document in documents:
            kept[splitter.side(document.astype("<u4").tobytes(), document.nbytes)].append(document)
        train.write_documents(kept["train"], eod_id)
        validation.write_documents(kept["validation"], eod_id)
        progress.update(done)
    return (
        Counts(train.documents, None, train.tokens),
        Counts(validation.documents, None, validation.tokens),
        Counts(splitter.unused_documents, None, splitter.unused_bytes // tokens.itemsize),
    )


def _documents(tokens: _Concatenated, eod_id: int) -> Iterator[tuple[list[np.ndarray], int]]:
    """Yield lists of non-empty documents, cut at `eod_id`, with the number of tokens read so far."""
    start = 0
    for block in range(0, len(tokens), BLOCK_TOKENS):
        documents = []
        for offset in np.flatnonzero(tokens[block : block + BLOCK_TOKENS] == eod_id):
            if (end := block + int(offset)) > start:
                documents.append(tokens[start:end])
            start = end + 1
        yield documents, start
    if start < len(tokens):
        yield [tokens[start:]], len(tokens)
