"""Prepare a dataset: assign documents to splits, train or load the tokenizer, write the tokens of both splits.

The name of a dataset's directory contains a hash of everything that determines its tokens, so it can be reused. It is
built under a lock and a temporary name, and renamed when it is complete. A dataset that a killed process left
incomplete is therefore never used, and the next process deletes it.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from smallbatch.data import dataset as datasets
from smallbatch.data import source_tokens, sources, tokenizers
from smallbatch.data.corpus_files import Skipped
from smallbatch.data.dataset import Counts, Dataset, DatasetMeta, TokenWriter
from smallbatch.data.round_trip import LossCheck
from smallbatch.data.tokenizers import Tokenizer
from smallbatch.data.validation_split import Assigned, Split, choose_split, token_documents
from smallbatch.errors import UserError
from smallbatch.files import paths
from smallbatch.files.locks import locked
from smallbatch.runs.progress import Progress, log
from smallbatch.runs.records import write_json
from smallbatch.specs import DataSpec

LIBRARIES = ("numpy", "tensorflow-datasets", "tokenizers", "pyarrow")
BATCH_ITEMS, BATCH_LENGTH = 1024, 2**20  # documents; characters or tokens


def prepare(spec: DataSpec) -> Dataset:
    """Return the dataset of a spec, and build it if it does not exist; a second process waits for the first.

    The notes of the dataset are printed, also when it is reused.

    Raises: UserError if the corpus or the tokenizer is invalid, or the dataset cannot be written.
    """
    dataset = lookup(spec) or _build_under_lock(spec)
    for note in dataset.meta.notes:
        log(f"{dataset.meta.source}: {note}")
    return dataset


def lookup(spec: DataSpec) -> Dataset | None:
    """Return the dataset of a spec if it is prepared; never build it. Raises: UserError if it is damaged."""
    directory = dataset_dir(spec)
    return datasets.open_dataset(directory) if paths.is_dir(directory) else None


def vocab_size(spec: DataSpec) -> int:
    """Return the vocabulary size of a spec without preparing anything."""
    kind, rest = tokenizers.split_tokenizer(spec.tokenizer)
    if sources.holds_tokens(spec):
        return source_tokens.vocab_size(spec)
    return int(rest) if kind == "bpe" else tokenizers.fixed(spec.tokenizer, spec.eod_token).vocab_size


def dataset_dir(spec: DataSpec) -> Path:
    """Return the dataset directory of a spec. Its name is a readable prefix and a hash."""
    tokenizer_kind, path = tokenizers.split_tokenizer(spec.tokenizer)
    identity = {
        "format": datasets.FORMAT_VERSION,
        "corpus": sources.identity(spec),
        "tokenizer": spec.tokenizer,
        "validation_frac": spec.validation_frac,
        "validation_max_bytes": spec.validation_max_bytes,
    }
    if (validation := sources.validation_spec(spec)) is not None:
        identity |= {"validation": sources.identity(validation), "validation_frac": None}
    if tokenizer_kind == "file":
        file = tokenizers.read_file(paths.local(path, "data.tokenizer: file:"))
        identity["tokenizer"] = [hashlib.sha256(file).hexdigest(), spec.eod_token]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    tokenizer = spec.tokenizer if tokenizer_kind != "file" else Path(path).stem
    words = [spec.source] if sources.holds_tokens(spec) else [spec.source, tokenizer]
    readable = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-.")[-40:] for word in words)
    return paths.local(spec.cache_dir, "data.cache_dir") / f"{readable}-{digest}"


def _build_under_lock(spec: DataSpec) -> Dataset:
    final = dataset_dir(spec)
    partial = final.with_name(final.name + ".partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked(final.with_name(final.name + ".lock")):
            if (dataset := lookup(spec)) is not None:
                return dataset
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                _build(spec, partial)
                partial.rename(final)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        raise UserError(
            f"cannot write the dataset {final}: {error.strerror or error}; free space or set data.cache_dir"
        ) from error
    return datasets.open_dataset(final)


def _build(spec: DataSpec, directory: Path) -> None:
    """Write the token files, the tokenizer and meta.json of a dataset into an empty directory."""
    split = choose_split(spec)
    tokenizer = _tokenizer(spec, split)
    if sources.holds_tokens(spec):
        vocab, eod_id, encoder = source_tokens.vocab_size(spec), spec.tokens_eod_id, None
    else:
        assert tokenizer is not None  # only a corpus of tokens may have none
        vocab, eod_id, encoder = tokenizer.vocab_size, tokenizer.eod_id, tokenizer
    dtype = datasets.dtype_name(vocab)
    skipped, check = Skipped(), LossCheck(encoder, spec.tokenizer, together=spec.validation_source is None)
    train, validation = (TokenWriter(directory, name, dtype) for name in ("train", "validation"))
    with contextlib.closing(train), contextlib.closing(validation):
        writers = {"train": train, "validation": validation}
        counts = _write_tokens(split.assign(skipped), encoder, eod_id, writers, check)
    check.raise_if_too_much()
    _check_sizes(spec, counts)
    if spec.validation_source is not None:
        _warn_of_given_validation(spec, directory, dtype, eod_id, counts)
    if tokenizer is not None:
        tokenizer.save(directory)
    meta = DatasetMeta(
        format_version=datasets.FORMAT_VERSION,
        source=spec.source,
        tokenizer=spec.tokenizer if tokenizer is not None else "none",
        vocab_size=vocab,
        eod_id=eod_id,
        dtype=dtype,
        **counts,
        train_sha256=train.sha256(),
        validation_sha256=validation.sha256(),
        sha256=datasets.dataset_sha256(vocab, eod_id, train.sha256(), validation.sha256()),
        split_rule=split.rule,
        text_lost_frac=check.lost_frac,
        notes=[*split.notes, *skipped.lines(), *check.notes()],
        libraries=_library_versions(),
    )
    datasets.remember_verified(directory)
    write_json(directory / datasets.META_FILE, dataclasses.asdict(meta))


def _tokenizer(spec: DataSpec, split: Split) -> Tokenizer | None:
    """Return the tokenizer. For a corpus of token ids, return the tokenizer that decodes samples, or None."""
    kind, rest = tokenizers.split_tokenizer(spec.tokenizer)
    if not sources.holds_tokens(spec):
        if kind == "bpe":
            return tokenizers.train_bpe((text for name, text in split.assign(Skipped()) if name == "train"), int(rest))
        return tokenizers.fixed(spec.tokenizer, spec.eod_token)
    if kind == "bpe":
        raise UserError(
            f"data.tokenizer={spec.tokenizer!r} cannot be trained, because {spec.source} contains no text; leave it at "
            "'bytes', or set file:PATH to the tokenizer.json that made the tokens"
        )
    if kind == "bytes":
        return None
    tokenizer = tokenizers.fixed(spec.tokenizer, spec.eod_token)
    if tokenizer.vocab_size > source_tokens.vocab_size(spec):
        raise UserError(
            f"{rest} has {tokenizer.vocab_size} ids, more than data.tokens_vocab_size={spec.tokens_vocab_size}; use "
            "the tokenizer.json that made the tokens, or correct data.tokens_vocab_size"
        )
    return tokenizer


def _write_tokens(
    assigned: Assigned,
    tokenizer: Tokenizer | None,
    eod_id: int | None,
    writers: dict[str, TokenWriter],
    check: LossCheck,
) -> dict[str, Counts]:
    """Write the tokens of both splits; return the counts of train, validation and unused.

    tokenizer: None if `assigned` yields tokens instead of texts.
    """
    documents, sizes = Counter(), Counter()  # sizes in bytes of text, or in tokens
    with Progress("prepare", None, unit="tokens" if tokenizer is None else "bytes") as progress:
        for batch in _batches(assigned):
            for split, item in batch:
                documents[split] += 1
                sizes[split] += len(item) if tokenizer is None else len(item.encode("utf-8"))
            for split, writer in writers.items():
                tokens = items = [item for of, item in batch if of == split]
                if tokenizer is not None:
                    tokens = tokenizer.encode_batch(items)
                    check.add(split, items, tokens)
                writer.write(tokens, eod_id)
            progress.update(sizes.total())

    def counts(split: str) -> Counts:
        known = documents[split] if eod_id is not None else None
        if tokenizer is None:
            return Counts(known, None, writers[split].tokens if split in writers else sizes[split])
        return Counts(known, sizes[split], writers[split].tokens if split in writers else None)

    return {split: counts(split) for split in (*writers, "unused")}


def _batches(assigned: Assigned) -> Iterator[list[tuple[str, Any]]]:
    """Group items into batches of about BATCH_LENGTH characters or tokens."""
    batch, length = [], 0
    for split, item in assigned:
        batch.append((split, item))
        length += len(item)
        if length >= BATCH_LENGTH or len(batch) == BATCH_ITEMS:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _check_sizes(spec: DataSpec, counts: dict[str, Counts]) -> None:
    """Raise UserError unless both splits have at least 2 tokens."""
    frac, max_bytes = f"data.validation_frac={spec.validation_frac}", f"{spec.validation_max_bytes}"
    train, validation, unused = (counts[name].tokens or 0 for name in ("train", "validation", "unused"))
    more_documents = "or split text files into more documents with data.document_separator"
    if validation == 1:
        raise UserError(
            f"the validation set has 1 token, but at least 2 are needed; raise {frac} or "
            f"data.validation_max_bytes={max_bytes}"
        )
    if train == 1:
        raise UserError("the training set has 1 token, but at least 2 are needed; use a larger corpus")
    if not validation and (unused or counts["unused"].documents):
        raise UserError(
            f"the first document of the validation split is larger than data.validation_max_bytes={max_bytes}; raise it"
        )
    if not validation:
        raise UserError(f"the validation split has no document at {frac}; raise it, {more_documents}")
    if not train:
        raise UserError(f"the training split has no document at {frac}; lower it, {more_documents}")


def _warn_of_given_validation(
    spec: DataSpec, directory: Path, dtype: str, eod_id: int | None, counts: dict[str, Counts]
) -> None:
    if counts["unused"].documents or counts["unused"].tokens:
        log(
            f"warning: the validation set is the first {counts['validation'].tokens:,} tokens of "
            f"{spec.validation_source}; raise data.validation_max_bytes={spec.validation_max_bytes} to use all of it"
        )
    if eod_id is not None and (shared := _shared_documents(directory, dtype, eod_id)):
        log(
            f"warning: {shared:,} training documents are also in the validation set {spec.validation_source}; if the "
            "model memorises them, the validation loss is too low; remove them from one of the two"
        )


def _shared_documents(directory: Path, dtype: str, eod_id: int) -> int:
    """Return how many training documents have the same tokens as a validation document."""
    train, validation = (datasets.mapped(directory / name, dtype) for name in datasets.TOKEN_FILES.values())
    digests: dict[int, set[bytes]] = {}  # by length; only training documents of these lengths are hashed
    for document in token_documents([validation], eod_id):
        digests.setdefault(len(document), set()).add(_digest(document))
    return sum(_digest(ids) in digests[len(ids)] for ids in token_documents([train], eod_id) if len(ids) in digests)


def _digest(document: np.ndarray) -> bytes:
    return hashlib.blake2b(document.tobytes(), digest_size=16).digest()


def _library_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
