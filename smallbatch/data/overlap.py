"""Count the documents that data.validation_source shares with the training set, from their token shards."""

import hashlib
from pathlib import Path

import numpy as np

from smallbatch.data.shards import little_endian, split_files


def shared_documents(directory: Path, dtype: str, eod_id: int) -> int:
    """Return how many training documents have the same tokens as a validation document.

    Only documents whose length occurs in the validation set are hashed. Documents that cross the end of a shard are
    skipped.
    """
    known: dict[int, set[bytes]] = {}
    for document in _documents(directory, "validation", dtype, eod_id, None):
        known.setdefault(len(document), set()).add(_digest(document))
    lengths = np.array(sorted(known))
    training = _documents(directory, "train", dtype, eod_id, lengths)
    return sum(_digest(document) in known[len(document)] for document in training)


def _documents(directory: Path, split: str, dtype: str, eod_id: int, lengths: np.ndarray | None):
    for path in split_files(directory, split):
        tokens = np.asarray(np.memmap(path, dtype=little_endian(dtype), mode="r"))
        ends = np.flatnonzero(tokens == eod_id)
        sizes = np.diff(ends) - 1
        wanted = sizes > 0 if lengths is None else np.isin(sizes, lengths)
        for number in np.flatnonzero(wanted):
            yield tokens[ends[number] + 1 : ends[number + 1]]


def _digest(document: np.ndarray) -> bytes:
    return hashlib.blake2b(document.tobytes(), digest_size=16).digest()
