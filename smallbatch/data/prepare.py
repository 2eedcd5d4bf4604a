"""Build a dataset once, reuse it ever after: a directory named after all that decides its tokens.

It is built beside its place, under a lock, and renamed when complete: what a killed `prepare` leaves behind
is never taken for a dataset, and the next one sweeps it away.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
from dataclasses import replace
from pathlib import Path

from smallbatch.data import overlap, shards, sources, text_shards, token_file, tokenizers
from smallbatch.data.shards import Dataset, DatasetMeta, ShardWriter
from smallbatch.data.text_shards import Written
from smallbatch.data.text_split import HashSplit, TailSplit, choose_split
from smallbatch.data.validation_split import SPLIT_RULE
from smallbatch.errors import UserError
from smallbatch.files import paths
from smallbatch.files.locks import locked
from smallbatch.runs.progress import log
from smallbatch.specs import DataSpec

TOKENS_PER_SHARD = 2**27
LIBRARIES = ("numpy", "tensorflow-datasets", "tokenizers", "pyarrow")


def prepare(spec: DataSpec, *, tokens_per_shard: int = TOKENS_PER_SHARD) -> Dataset:
    """Return the dataset of a spec, building it if it does not exist; a second process waits for the first.

    The notes of the dataset are printed, including when it is reused.

    Raises: UserError for anything wrong with the corpus, the tokenizer or the disk.
    """
    dataset = _prepare(spec, tokens_per_shard)
    for note in dataset.meta.notes:
        log(f"{dataset.meta.source}: {note}")
    return dataset


def _prepare(spec: DataSpec, tokens_per_shard: int) -> Dataset:
    if (dataset := lookup(spec)) is not None:
        return dataset
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
                _build(spec, partial, tokens_per_shard)
                _sync(partial)
                partial.rename(final)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            _sync_directory(final.parent)
    except OSError as error:
        raise UserError(
            f"cannot write the dataset {final}: {error.strerror or error}; free space or set data.cache_dir"
        ) from error
    return shards.open_dataset(final)


def lookup(spec: DataSpec) -> Dataset | None:
    """Return the dataset of a spec if it is prepared; never build it. Raises: UserError if it is damaged."""
    directory = dataset_dir(spec)
    return shards.open_dataset(directory) if paths.is_dir(directory) else None


def vocab_size(spec: DataSpec) -> int:
    """Return the vocabulary of a spec without preparing anything."""
    kind, rest = tokenizers.split_tokenizer(spec.tokenizer)
    if sources.split_source(spec.source)[0] == "tokens":
        return token_file.vocab_size(spec)
    if kind == "bpe":
        return int(rest)
    return _fixed_tokenizer(spec).vocab_size


def dataset_dir(spec: DataSpec) -> Path:
    """Return where the dataset of a spec is or will be: a readable name and a hash."""
    source_kind, _ = sources.split_source(spec.source)
    tokenizer_kind, path = tokenizers.split_tokenizer(spec.tokenizer)
    identity = {
        "format": shards.FORMAT_VERSION,
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
    words = [spec.source] if source_kind == "tokens" else [spec.source, tokenizer]
    readable = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-.")[-40:] for word in words)
    return paths.local(spec.cache_dir, "data.cache_dir") / f"{readable}-{digest}"


def _build(spec: DataSpec, directory: Path, tokens_per_shard: int) -> None:
    kind, _ = sources.split_source(spec.source)
    split = None if kind == "tokens" else _text_split(spec)
    tokenizer = _tokenizer(spec, split)
    if split is None:
        vocab, eod_id = token_file.vocab_size(spec), spec.tokens_eod_id
    else:
        assert tokenizer is not None
        vocab, eod_id = tokenizer.vocab_size, tokenizer.eod_id
    dtype = shards.dtype_name(vocab)
    train = ShardWriter(directory, "train", dtype, tokens_per_shard)
    validation = ShardWriter(directory, "validation", dtype, tokens_per_shard)
    with contextlib.closing(train), contextlib.closing(validation):
        written = _write_splits(spec, split, tokenizer, train, validation)
    _check_both_sides(spec, written.train, written.validation, written.unused)
    shards.remember_verified(directory)
    if spec.validation_source is not None:
        _warn_of_given_validation(spec, directory, dtype, eod_id, written)
    if tokenizer is not None:
        tokenizer.save(directory)
    meta = DatasetMeta(
        format_version=shards.FORMAT_VERSION,
        source=spec.source,
        tokenizer=spec.tokenizer if tokenizer is not None else "none",
        vocab_size=vocab,
        eod_id=eod_id,
        dtype=dtype,
        tokens_per_shard=tokens_per_shard,
        train=written.train,
        validation=written.validation,
        unused=written.unused,
        train_sha256=train.sha256(),
        validation_sha256=validation.sha256(),
        sha256=shards.dataset_sha256(vocab, eod_id, train.sha256(), validation.sha256()),
        split_rule=written.split_rule,
        text_lost_frac=written.text_lost_frac,
        notes=written.notes,
        libraries=_library_versions(),
    )
    shards.write_meta(directory, meta)


def _text_split(spec: DataSpec) -> HashSplit | TailSplit:
    """Return the rule that splits the documents of data.source."""
    return choose_split(spec) if spec.validation_source is None else HashSplit(_training_spec(spec))


def _write_splits(
    spec: DataSpec,
    split: HashSplit | TailSplit | None,
    tokenizer: tokenizers.Tokenizer | None,
    train: ShardWriter,
    validation: ShardWriter,
) -> Written:
    """Write the tokens of both splits; `split` is None for a corpus of tokens."""

    def write(part: DataSpec, part_split: HashSplit | TailSplit | None) -> Written:
        kind, rest = sources.split_source(part.source)
        if kind == "tokens":
            counts = token_file.write_splits(part, rest, train, validation)
            rule = SPLIT_RULE if part.tokens_eod_id is not None else token_file.TAIL_RULE
            return Written(*counts, split_rule=rule, text_lost_frac=None, notes=[])
        assert tokenizer is not None and part_split is not None
        return text_shards.write_splits(part, part_split, tokenizer, train, validation)

    given = sources.validation_spec(spec)
    if given is None:
        return write(spec, split)
    held_out = write(given, HashSplit(given))
    trained = write(_training_spec(spec), split)
    lost_fracs = [part.text_lost_frac for part in (held_out, trained) if part.text_lost_frac is not None]
    return Written(
        trained.train,
        held_out.validation,
        held_out.unused,
        split_rule=f"The validation set is {spec.validation_source}, up to validation_max_bytes; all of source is "
        "trained on.",
        text_lost_frac=max(lost_fracs, default=None),
        notes=[*held_out.notes, *trained.notes],
    )


def _training_spec(spec: DataSpec) -> DataSpec:
    """Return the spec of the training documents; with data.validation_source, all documents are training data."""
    return spec if spec.validation_source is None else replace(spec, validation_frac=0.0)


def _warn_of_given_validation(
    spec: DataSpec, directory: Path, dtype: str, eod_id: int | None, written: Written
) -> None:
    validation, unused = written.validation, written.unused
    if unused.documents or unused.tokens:
        log(
            f"warning: the validation set is the first {validation.tokens:,} tokens of {spec.validation_source}; raise "
            f"data.validation_max_bytes, {spec.validation_max_bytes:,}, to use all of it"
        )
    shared = 0 if eod_id is None else overlap.shared_documents(directory, dtype, eod_id)
    if shared:
        log(
            f"warning: {shared:,} training documents are also in the validation set {spec.validation_source}; if the "
            "model memorises them, the validation loss is too low"
        )


def _tokenizer(spec: DataSpec, split: HashSplit | TailSplit | None) -> tokenizers.Tokenizer | None:
    """Return the tokenizer; for a corpus of tokens, the file that decodes its samples or None."""
    kind, rest = tokenizers.split_tokenizer(spec.tokenizer)
    if sources.split_source(spec.source)[0] == "tokens":
        if kind == "bpe":
            raise UserError(
                f"data.tokenizer={spec.tokenizer!r} cannot be trained: {spec.source} holds no text; "
                "leave it at 'bytes', or name the tokenizer.json that made the tokens with file:PATH"
            )
        if kind == "bytes":
            return None
        tokenizer = _fixed_tokenizer(spec)
        if tokenizer.vocab_size > token_file.vocab_size(spec):
            raise UserError(
                f"{rest} has {tokenizer.vocab_size} ids, more than data.tokens_vocab_size="
                f"{spec.tokens_vocab_size}; the two do not belong together"
            )
        return tokenizer
    if kind == "bpe":
        assert split is not None
        return tokenizers.train_bpe(text_shards.training_texts(spec, split), int(rest))
    return _fixed_tokenizer(spec)


def _fixed_tokenizer(spec: DataSpec) -> tokenizers.Tokenizer:
    kind, rest = tokenizers.split_tokenizer(spec.tokenizer)
    if kind == "bytes":
        return tokenizers.BytesTokenizer()
    return tokenizers.from_file(paths.local(rest), spec.eod_token)


def _check_both_sides(spec: DataSpec, train: shards.Counts, validation: shards.Counts, unused: shards.Counts) -> None:
    if validation.tokens == 1:
        raise UserError(
            "the validation set has 1 token, and at least 2 are needed; raise data.validation_frac="
            f"{spec.validation_frac} or data.validation_max_bytes={spec.validation_max_bytes}"
        )
    if train.tokens == 1:
        raise UserError("the training set has 1 token, and at least 2 are needed; use a larger corpus")
    if not validation.tokens:
        if unused.documents or unused.tokens:
            raise UserError(
                f"the first held-out document is larger than data.validation_max_bytes="
                f"{spec.validation_max_bytes}; raise it"
            )
        raise UserError(
            f"no document was held out at data.validation_frac={spec.validation_frac}; raise it, "
            "or cut text files into more documents with data.document_separator"
        )
    if not train.tokens:
        raise UserError(
            f"every document was held out at data.validation_frac={spec.validation_frac}; lower it, "
            "or cut text files into more documents with data.document_separator"
        )


def _library_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _sync(directory: Path) -> None:
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
