"""`tokens:GLOB`: flat little-endian files of token ids, as nanoGPT, llm.c and Marek et al. write them.

Several files are concatenated in order of their paths. The header of llm.c (also used by modded-nanogpt) is recognised,
checked against the file and skipped.
"""

from pathlib import Path

import numpy as np

from smallbatch.data import corpus_files
from smallbatch.data.corpus_files import Skipped
from smallbatch.data.dataset import little_endian, mapped
from smallbatch.errors import UserError
from smallbatch.specs import DataSpec

BLOCK_TOKENS = 2**22
HEADER_BYTES = 1024  # of llm.c: 256 int32; the first three are magic number, version and number of tokens
HEADERS = {(20240520, 1): "uint16", (20240801, 7): "uint32"}  # llm.c: dev/data/data_common.py


def identity(spec: DataSpec) -> dict[str, object]:
    files = [corpus_files.identity(path) for path in matched_files(spec.source)]
    return {
        "file": files[0] if len(files) == 1 else files,
        "dtype": spec.tokens_dtype,
        "vocab_size": spec.tokens_vocab_size,
        "eod_id": spec.tokens_eod_id,
    }


def vocab_size(spec: DataSpec) -> int:
    """Return data.tokens_vocab_size. Raises: UserError if it is unset, or not above data.tokens_eod_id."""
    size, eod_id = spec.tokens_vocab_size, spec.tokens_eod_id
    if size is None:
        raise UserError(
            "data.tokens_vocab_size is unset, and data.source=tokens:GLOB needs it; set it to the vocabulary size of "
            "the tokenizer"
        )
    if eod_id is not None and not 0 <= eod_id < size:
        raise UserError(
            f"data.tokens_eod_id={eod_id} is not in [0, data.tokens_vocab_size={size}); set it to the id that ends a "
            "document"
        )
    return size


def matched_files(source: str) -> list[Path]:
    """Return the files of `tokens:GLOB`. Raises: UserError if there is none, or a link has no target."""
    skipped = Skipped()
    files = corpus_files.matched_files(source.removeprefix("tokens:"), "tokens:", skipped)
    if skipped.counts:
        raise UserError(f"{source} matches {skipped.lines()[0]}; restore the targets, or narrow the glob")
    return sorted(files)


def open_tokens(spec: DataSpec) -> list[np.ndarray]:
    """Return the tokens of each file, memory-mapped, after a check of every id. Raises: UserError."""
    files = matched_files(spec.source)
    headers = {path: _header(path) for path in files}
    bare = [path for path, header in headers.items() if header is None]
    if bare and len(bare) < len(files):
        other = next(path for path, header in headers.items() if header is not None)
        raise UserError(
            f"{other} has the header of llm.c, but {bare[0]} has none; all files of tokens:GLOB must have it, or "
            "none: narrow the glob"
        )
    parts = [_open(path, spec.tokens_dtype, header) for path, header in headers.items()]
    for path, tokens in zip(files, parts, strict=True):
        _check_ids(tokens, vocab_size(spec), path)
    return parts


def _header(path: Path) -> tuple[str, int] | None:
    """Return the token type and the number of tokens in the header of a file, None if it has none."""
    try:
        corpus_files.refuse_lfs_pointer(path)
        with path.open("rb") as file:
            magic, version, tokens = np.frombuffer(file.read(12).ljust(12, b"\0"), dtype="<u4").tolist()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    if (magic, version) in HEADERS:
        return HEADERS[magic, version], tokens
    known_versions = dict(HEADERS.keys())
    if magic in known_versions:
        raise UserError(
            f"{path} has an llm.c header of version {version}, but only version {known_versions[magic]} is supported; "
            "write the file with that version, or without a header"
        )
    return None


def _open(path: Path, dtype_name: str, header: tuple[str, int] | None) -> np.ndarray:
    """Return the tokens of a file, memory-mapped, without its header."""
    if header and header[0] != dtype_name:
        raise UserError(
            f"{path} has {header[0]} tokens according to its header, but data.tokens_dtype is {dtype_name}; set "
            f"data.tokens_dtype={header[0]}, and match only files of this type with tokens:GLOB"
        )
    dtype, offset, size = little_endian(dtype_name), HEADER_BYTES if header else 0, path.stat().st_size
    if header and size != offset + header[1] * dtype.itemsize:
        raise UserError(
            f"{path} has {size} bytes, but with the {header[1]} {dtype_name} tokens of its header it should have "
            f"{offset + header[1] * dtype.itemsize}; it is truncated or damaged: copy it again"
        )
    if size <= offset or size % dtype.itemsize:
        raise UserError(
            f"{path} has {size} bytes, which is not a whole number of {dtype_name} tokens above 0; "
            "check data.tokens_dtype and the file"
        )
    tokens = mapped(path, dtype_name, offset)
    if tokens[:3].tobytes()[:6] == b"\x93NUMPY":
        raise UserError(f"{path} is a .npy file with a header; write the bare tokens with array.tofile(PATH)")
    return tokens


def _check_ids(tokens: np.ndarray, vocab: int, path: Path) -> None:
    for start in range(0, len(tokens), BLOCK_TOKENS):
        wrong = tokens[start : start + BLOCK_TOKENS] >= vocab
        if wrong.any():
            position = start + int(wrong.argmax())
            raise UserError(
                f"{path}: token {position} is {tokens[position]}, not below data.tokens_vocab_size={vocab}; "
                "check that number and data.tokens_dtype"
            )
