"""`tokens:PATH` to shards: a flat little-endian file of token ids, as nanoGPT and Marek et al. write them.

With `data.tokens_eod_id` documents are cut there and held out like any other, by a hash of their tokens (as
uint32, so that the stored type does not matter). Without it the file is one stream, and its tail is held out.
`data.validation_max_bytes` counts bytes as the file stores them.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from smallbatch.data.file_glob import is_lfs_pointer
from smallbatch.data.held_out import Splitter
from smallbatch.data.shards import Counts, ShardWriter, little_endian
from smallbatch.errors import UserError
from smallbatch.progress import Progress
from smallbatch.specs import DataSpec

BLOCK_TOKENS = 2**22
TAIL_RULE = (
    "The last validation_frac of the file's tokens is held out. It is the validation set up to "
    "validation_max_bytes of stored tokens; the rest of it is unused."
)


def vocab_size(spec: DataSpec) -> int:
    """Return data.tokens_vocab_size. Raises: UserError if it is unset or does not fit data.tokens_eod_id."""
    size, eod_id = spec.tokens_vocab_size, spec.tokens_eod_id
    if size is None:
        raise UserError("data.source=tokens:PATH needs data.tokens_vocab_size, the number of ids of its tokenizer")
    if eod_id is not None and not 0 <= eod_id < size:
        raise UserError(f"data.tokens_eod_id={eod_id} is not one of the {size} ids of data.tokens_vocab_size")
    return size


def write_splits(
    spec: DataSpec, path: Path, train: ShardWriter, validation: ShardWriter
) -> tuple[Counts, Counts, Counts]:
    """Write both splits of a checked token file; return the counts of train, validation and unused."""
    tokens = _open(path, spec.tokens_dtype)
    _check_ids(tokens, vocab_size(spec), path)
    with Progress("prepare", len(tokens), unit="tokens") as progress:
        if spec.tokens_eod_id is None:
            return _write_tail_split(spec, tokens, train, validation, progress)
        return _write_document_split(spec, tokens, spec.tokens_eod_id, train, validation, progress)


def _open(path: Path, dtype_name: str) -> np.ndarray:
    if dtype_name not in ("uint16", "uint32"):
        raise UserError(f"data.tokens_dtype={dtype_name!r} is neither uint16 nor uint32")
    dtype = little_endian(dtype_name)
    try:
        if is_lfs_pointer(path):
            raise UserError(f"{path} is a Git LFS pointer, not its content; run `git lfs pull` in its repository")
        size = path.stat().st_size
        if size == 0 or size % dtype.itemsize:
            raise UserError(
                f"{path} has {size} bytes, which is no whole number of {dtype_name} tokens; "
                "check data.tokens_dtype and the file"
            )
        tokens = np.memmap(path, dtype=dtype, mode="r")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if bytes(tokens[:3].tobytes()[:6]) == b"\x93NUMPY":
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


def _documents(tokens: np.ndarray, eod_id: int) -> Iterator[tuple[list[np.ndarray], int]]:
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
