"""Assign the documents of a corpus to splits: "train", "validation", or "unused" beyond data.validation_max_bytes.

Documents are assigned by a hash of their content. Duplicates are therefore in the same split, and neither the order of
the corpus nor its other documents change the split of a document. If the hash assigns all documents of a text corpus to
one split, as with a single book, the end of the text is the validation set. The same applies to tokens without
data.tokens_eod_id. With data.validation_source, that corpus is the validation set.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from smallbatch.data import sources
from smallbatch.data.corpus_files import Skipped
from smallbatch.runs.progress import Progress
from smallbatch.specs import DataSpec

LINE_END_SEARCH_CHARACTERS = 1024
BLOCK_TOKENS = 2**22
HASH_RULE = (
    "A document is assigned to the validation split if the 8-byte blake2b digest of its content, as a little-endian "
    "fraction of 2^64, is below validation_frac. The validation set is these documents in corpus order, up to the "
    "first that would exceed validation_max_bytes; that one and all later ones are unused."
)
TAIL_RULE = (
    "The hash of their content assigns all documents to one split, so the last validation_frac of the text's bytes is "
    "the validation split. The validation set is its start, up to validation_max_bytes; the rest is unused. A part "
    f"ends after the last line end within {LINE_END_SEARCH_CHARACTERS} characters before its limit, or else at the "
    "last whole character. The parts of a document that is cut count as documents."
)
TOKENS_TAIL_RULE = (
    "The last validation_frac of the tokens is the validation split. The validation set is its start, up to "
    "validation_max_bytes of stored tokens; the rest is unused."
)
Item = TypeVar("Item")
Assigned = Iterator[tuple[str, Any]]  # (split, text or array of tokens)


@dataclass(frozen=True)
class Split:
    """A rule and its application: `assign(skipped)` reads the corpus and yields the split of each part of it."""

    rule: str
    assign: Callable[[Skipped], Assigned]
    notes: tuple[str, ...] = ()  # printed each time the dataset is used


def choose_split(spec: DataSpec) -> Split:
    """Return the split of a corpus of text or tokens."""
    given = sources.validation_spec(spec)
    if given is not None:
        train = replace(spec, validation_source=None, validation_frac=0.0)

        def assign_both(skipped: Skipped) -> Assigned:
            yield from _assign(given, skipped)
            yield from _assign(train, skipped)

        validation_set = f"The validation set is {spec.validation_source}, up to validation_max_bytes."
        return Split(f"{validation_set} The training set is all of source.", assign_both)
    if not sources.holds_tokens(spec) and (size := _size_if_one_split(spec)):
        documents, size_bytes = size
        corpus = "the corpus is one document" if documents == 1 else f"the corpus is only {documents:,} documents"
        note = f"{corpus}: the last {spec.validation_frac:.2%} of its text is the validation set"
        train_bytes = size_bytes - int(size_bytes * spec.validation_frac)
        limits = {"train": train_bytes, "validation": spec.validation_max_bytes}
        return Split(TAIL_RULE, lambda skipped: _cut_texts(sources.documents(spec, skipped), limits), (note,))
    by_position = sources.holds_tokens(spec) and spec.tokens_eod_id is None
    return Split(TOKENS_TAIL_RULE if by_position else HASH_RULE, functools.partial(_assign, spec))


def is_validation(content: bytes, validation_frac: float) -> bool:
    """Return whether the hash assigns a document to the validation split."""
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "little") < validation_frac * 2**64


def _size_if_one_split(spec: DataSpec) -> tuple[int, int] | None:
    """Return (documents, bytes) of a corpus if the hash assigns all documents to one split, else None.

    Reading stops as soon as both splits have a document.
    """
    seen, documents, size_bytes = set(), 0, 0
    with Progress("split", None, unit="bytes") as progress:
        for text in sources.documents(spec):
            content = text.encode("utf-8")
            seen.add(is_validation(content, spec.validation_frac))
            if len(seen) == 2:
                return None
            documents += 1
            size_bytes += len(content)
            progress.update(size_bytes)
    return documents, size_bytes


def _assign(spec: DataSpec, skipped: Skipped) -> Assigned:
    if not sources.holds_tokens(spec):
        contents = ((text, text.encode("utf-8")) for text in sources.documents(spec, skipped))
        return _assign_by_hash(((text, content, len(content)) for text, content in contents), spec)
    parts = sources.module(spec).open_tokens(spec)
    if spec.tokens_eod_id is None:
        return _cut_tokens(parts, spec)
    documents = token_documents(parts, spec.tokens_eod_id)
    # As uint32, so that the hash does not depend on the stored type.
    return _assign_by_hash(((ids, ids.astype("<u4").tobytes(), ids.nbytes) for ids in documents), spec)


def _assign_by_hash(items: Iterable[tuple[Item, bytes, int]], spec: DataSpec) -> Iterator[tuple[str, Item]]:
    """Yield the split of each item (document, content to hash, size in bytes)."""
    bytes_left, full = spec.validation_max_bytes, False
    for item, content, size_bytes in items:
        if not is_validation(content, spec.validation_frac):
            yield "train", item
        elif full or size_bytes > bytes_left:
            full = True
            yield "unused", item
        else:
            bytes_left -= size_bytes
            yield "validation", item


def _cut_texts(texts: Iterable[str], limits_bytes: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield the split of each document, or of each part of a document that is cut, in the order of `limits_bytes`."""
    limits = dict(limits_bytes)
    for text in texts:
        for split in list(limits):
            part, text = cut_at(text, limits[split])
            if part:
                limits[split] -= len(part.encode("utf-8"))
                yield split, part
            if not text:
                break
            del limits[split]
        if text:
            yield "unused", text


def cut_at(text: str, limit_bytes: int) -> tuple[str, str]:
    """Split a text so that its head has at most limit_bytes in UTF-8, at a line end if one is near the limit."""
    content = text.encode("utf-8")
    if len(content) <= limit_bytes:
        return text, ""
    head = content[:limit_bytes].decode("utf-8", errors="ignore")  # drops a character that crosses the limit
    if text[len(head)] == "\n" and head.endswith("\r"):
        head = head[:-1]  # do not split a CRLF
    start = max(0, len(head) - LINE_END_SEARCH_CHARACTERS)
    line_end = max(head.rfind("\n", start), head.rfind("\r", start))
    if line_end >= 0:
        head = head[: line_end + 1]
    return head, text[len(head) :]


def _cut_tokens(parts: list[np.ndarray], spec: DataSpec) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (split, tokens) of the concatenated parts: training, validation and unused tokens follow each other."""
    total = sum(map(len, parts))
    validation = int(total * spec.validation_frac)
    used = min(validation, spec.validation_max_bytes // parts[0].itemsize)
    start, cuts = 0, np.array([total - validation, total - validation + used])
    for block in _blocks(parts):
        pieces = np.split(block, np.clip(cuts - start, 0, len(block)))
        yield from zip(("train", "validation", "unused"), pieces, strict=True)
        start += len(block)


def token_documents(parts: list[np.ndarray], eod_id: int) -> Iterator[np.ndarray]:
    """Yield the non-empty documents of the concatenated parts, which end at `eod_id`."""
    unfinished: list[np.ndarray] = []
    for block in _blocks(parts):
        start = 0
        for end in np.flatnonzero(block == eod_id):
            document = np.concatenate([*unfinished, block[start:end]])
            unfinished, start = [], end + 1
            if len(document):
                yield document
        unfinished.append(block[start:])
    if any(map(len, unfinished)):
        yield np.concatenate(unfinished)


def _blocks(parts: list[np.ndarray]) -> Iterator[np.ndarray]:
    for part in parts:
        for start in range(0, len(part), BLOCK_TOKENS):
            yield part[start : start + BLOCK_TOKENS]
