"""Corpora of a few kilobytes and the specs that read them, for the tests of `smallbatch.data`."""

import random
from pathlib import Path

from smallbatch.specs import DataSpec

WORDS = ["batch", "step", "token", "loss", "width", "café", "naïve", "学习", "🙂", "moment", "decay", "noise"]


def data_spec(cache_dir: Path, **changes) -> DataSpec:
    fields = {
        "source": "pystdlib",
        "tokenizer": "bytes",
        "split": "train",
        "text_key": "text",
        "document_separator": None,
        "eod_token": None,
        "tokens_dtype": "uint16",
        "tokens_vocab_size": None,
        "tokens_eod_id": None,
        "validation_source": None,
        "validation_frac": 0.2,
        "validation_max_bytes": 10_000,
        "tfds_data_dir": None,
        "cache_dir": str(cache_dir),
    }
    return DataSpec(**(fields | changes))


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return different short documents, some with letters of two to four bytes."""
    chance = random.Random(seed)
    return [f"{n}: " + " ".join(chance.choices(WORDS, k=chance.randrange(5, 40))) for n in range(count)]


def write_corpus(directory: Path, documents: list[str]) -> str:
    """Write each document to its own .txt file, in order, and return the `data.source` that reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(documents):
        (directory / f"{number:05d}.txt").write_bytes(text.encode())
    return f"text:{directory}/*.txt"
