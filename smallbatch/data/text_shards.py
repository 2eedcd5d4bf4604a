"""Write the documents of a text corpus as token shards, and give a BPE its training text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from smallbatch.data import sources
from smallbatch.data.round_trip import LossCheck
from smallbatch.data.shards import Counts, ShardWriter
from smallbatch.data.text_files import Skipped
from smallbatch.data.text_split import HashSplit, TailSplit
from smallbatch.data.tokenizers import BPE_TRAINING_BYTES, Tokenizer
from smallbatch.runs.progress import Progress
from smallbatch.specs import DataSpec

BATCH_CHARACTERS = 2**20
BATCH_DOCUMENTS = 1024


@dataclass(frozen=True)
class Written:
    """Counts and notes of both splits, available once their tokens are written."""

    train: Counts
    validation: Counts
    unused: Counts
    split_rule: str
    text_lost_frac: float | None  # fraction of the documents' bytes that the tokenizer loses; None without text
    notes: list[str]  # printed each time the dataset is used


def training_texts(spec: DataSpec, split: HashSplit | TailSplit) -> Iterator[str]:
    """Yield training documents, never a held-out one, until they hold BPE_TRAINING_BYTES."""
    done_bytes = 0
    with Progress("train the tokenizer", None, unit="bytes") as progress:
        for side, text in split.assign(sources.documents(spec)):
            if side != "train":
                continue
            yield text
            done_bytes += len(text.encode("utf-8"))
            progress.update(done_bytes)
            if done_bytes >= BPE_TRAINING_BYTES:
                return


def write_splits(
    spec: DataSpec, split: HashSplit | TailSplit, tokenizer: Tokenizer, train: ShardWriter, validation: ShardWriter
) -> Written:
    """Write the token streams of both splits.

    Raises: UserError if the tokenizer loses more text than LossCheck allows.
    """
    writers = {"train": train, "validation": validation}
    split_bytes = {"train": 0, "validation": 0, "unused": 0}
    unused_documents = 0
    skipped, loss = Skipped(), LossCheck(tokenizer, spec.tokenizer)
    with Progress("prepare", sources.size_bytes(spec), unit="bytes") as progress:
        for batch in _batches(split.assign(sources.documents(spec, skipped))):
            for side, text in batch:
                split_bytes[side] += len(text.encode("utf-8"))
            for side, writer in writers.items():
                texts = [text for of, text in batch if of == side]
                tokens = tokenizer.encode_batch(texts)
                loss.add(texts, tokens, validation=side == "validation")
                writer.write_documents(tokens, tokenizer.eod_id)
            unused_documents += sum(side == "unused" for side, _ in batch)
            progress.update(sum(split_bytes.values()))
    loss.raise_if_too_much()
    return Written(
        Counts(train.documents, split_bytes["train"], train.tokens),
        Counts(validation.documents, split_bytes["validation"], validation.tokens),
        Counts(unused_documents, split_bytes["unused"], None),
        split.rule,
        loss.lost_frac,
        [*split.notes, *skipped.lines(), *loss.notes()],
    )


def _batches(texts: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Group (side, text) into batches of about BATCH_CHARACTERS characters."""
    batch, characters = [], 0
    for side, text in texts:
        batch.append((side, text))
        characters += len(text)
        if characters >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
