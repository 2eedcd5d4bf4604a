"""Rules over the keys of the data section, each a generator of problems; `config_checks.problems` runs them."""

from collections.abc import Iterator
from typing import Any

from smallbatch.errors import did_you_mean
from smallbatch.specs import LARGEST_VOCAB, SMALLEST_BPE_VOCAB, SOURCES, is_bpe_vocab

Flat = dict[str, Any]


def sources(flat: Flat, defaults: Flat) -> Iterator[str]:
    source = flat["data.source"]
    kind, colon, rest = source.partition(":")
    if kind not in SOURCES or not bool(colon) == bool(rest) == (":" in SOURCES[kind].form):
        allowed = " | ".join(entry.form for entry in SOURCES.values())
        yield f"data.source is {source!r}; it takes {allowed}{did_you_mean(kind, SOURCES)}"
        return
    read = set(SOURCES[kind].reads)
    if (flat.get("data.validation_source") or "").startswith("text:"):
        read |= set(SOURCES["text"].reads)
    if flat.get("data.tokenizer", "").startswith("file:"):
        read.add("tokenizer")  # a corpus of tokens is not encoded with it, but its samples are decoded
    for name in {name: None for entry in SOURCES.values() for name in entry.reads if name not in read}:
        key = f"data.{name}"
        if key in flat and flat[key] != defaults[key]:
            yield no_effect(key, flat[key], f"data.source {source!r}", f"leave it at {defaults[key]!r}")
    for key in ("data.cache_dir", "data.tfds_data_dir"):
        if flat[key] == "":
            yield f"{key} is empty; set it to a directory"


def tokens(flat: Flat, defaults: Flat) -> Iterator[str]:
    if not flat["data.source"].startswith("tokens:"):
        return
    vocab_size, eod_id = flat["data.tokens_vocab_size"], flat["data.tokens_eod_id"]
    if vocab_size is None:
        yield "data.tokens_vocab_size is unset; data.source tokens:PATH needs it, e.g. 50257 for GPT-2 tokens"
        return
    largest = 2**16 if flat["data.tokens_dtype"] == "uint16" else LARGEST_VOCAB
    if not 2 <= vocab_size <= largest:
        dtype = flat["data.tokens_dtype"]
        yield f"data.tokens_vocab_size is {vocab_size}; {dtype} tokens allow 2 to {largest}"
    if eod_id is not None and eod_id >= vocab_size:
        yield f"data.tokens_eod_id is {eod_id}; it must be below data.tokens_vocab_size, {vocab_size}"


def validation_source(flat: Flat, defaults: Flat) -> Iterator[str]:
    key = "data.validation_source"
    source, given = flat["data.source"], flat[key]
    if given is None:
        return
    kind, _, rest = given.partition(":")
    if kind not in ("text", "tokens", "split") or not rest:
        meant = did_you_mean(kind, ("text", "tokens", "split"))
        yield f"{key} is {given!r}; it takes text:GLOB | tokens:GLOB | split:TFDS_SPLIT{meant}"
    elif kind == "split" and not source.startswith("tfds:"):
        yield f"{key} is {given!r}, which needs data.source tfds:NAME, not {source!r}; use text:GLOB or tokens:GLOB"
    elif kind == "split" and rest == flat["data.split"]:
        yield f"{key} is {given!r}, which is data.split, the training set; choose another split"
    elif kind != "split" and (kind == "tokens") is not source.startswith("tokens:"):
        yield (
            f"{key} is {given!r} and data.source is {source!r}; use tokens:GLOB for both, or text:GLOB with a text "
            "source"
        )
    fraction = "data.validation_frac"
    if flat[fraction] != defaults[fraction]:
        yield no_effect(fraction, flat[fraction], f"{key} set", f"leave it at {defaults[fraction]!r}")


def tokenizer(flat: Flat, defaults: Flat) -> Iterator[str]:
    tokenizer, eod_token = flat["data.tokenizer"], flat["data.eod_token"]
    kind, _, rest = tokenizer.partition(":")
    if tokenizer != "bytes" and not (kind in ("bpe", "file") and rest):
        meant = did_you_mean(kind, ("bytes", "bpe", "file"))
        yield f"data.tokenizer is {tokenizer!r}; it takes bytes | bpe:VOCABULARY | file:PATH{meant}"
    elif kind == "bpe" and not is_bpe_vocab(rest):
        allowed = f"a whole number from {SMALLEST_BPE_VOCAB} to {LARGEST_VOCAB:,}"
        yield f"data.tokenizer is {tokenizer!r}; the vocabulary must be {allowed}"
    if eod_token is not None and kind != "file":
        yield no_effect("data.eod_token", eod_token, f"data.tokenizer {tokenizer!r}", unset("data.eod_token"))


def no_effect(key: str, value: Any, where: str, fix: str) -> str:
    """Return the problem of a key that is set where nothing reads it."""
    return f"{key} is {value!r}, which has no effect with {where}; {fix}"


def unset(key: str) -> str:
    """Return the flag that unsets a key."""
    return f"--config.{key}=None"
