"""Documents to shards: the training text of a BPE, and both token streams with their counts."""

from collections.abc import Iterable, Iterator

from smallbatch.data import sources
from smallbatch.data.held_out import Splitter, is_held_out
from smallbatch.data.shards import Counts, ShardWriter
from smallbatch.data.tokenizers import BPE_TRAINING_BYTES, Tokenizer
from smallbatch.progress import Progress
from smallbatch.specs import DataSpec

BATCH_CHARACTERS = 2**20
BATCH_DOCUMENTS = 1024


def training_texts(spec: DataSpec) -> Iterator[str]:
    """Yield training documents, never a held-out one, until they hold BPE_TRAINING_BYTES."""
    done_bytes = 0
    with Progress("train the tokenizer", None, unit="bytes") as progress:
        for text in sources.documents(spec):
            content = text.encode("utf-8")
            if is_held_out(content, spec.validation_frac):
                continue
            yield text
            done_bytes += len(content)
            progress.update(done_bytes)
            if done_bytes >= BPE_TRAINING_BYTES:
                return


def write_splits(
    spec: DataSpec, tokenizer: Tokenizer, train: ShardWriter, validation: ShardWriter
) -> tuple[Counts, Counts, Counts]:
    """Write the token streams of both splits; return the counts of train, validation and unused."""
    writers = {"train": train, "validation": validation}
    split_bytes = {"train": 0, "validation": 0}
    splitter = Splitter(spec.validation_frac, spec.validation_max_bytes)
    with Progress("prepare", sources.size_bytes(spec), unit="bytes") as progress:
        for texts in _batches(sources.documents(spec)):
            kept: dict[str, list[str]] = {"train": [], "validation": []}
            for text in texts:
                content = text.encode("utf-8")
                side = splitter.side(content, len(content))
                if side in kept:
                    kept[side].append(text)
                    split_bytes[side] += len(content)
            for side, writer in writers.items():
                writer.write_documents(tokenizer.encode_batch(kept[side]), tokenizer.eod_id)
            progress.update(sum(split_bytes.values()) + splitter.unused_bytes)
    return (
        Counts(train.documents, split_bytes["train"], train.tokens),
        Counts(validation.documents, split_bytes["validation"], validation.tokens),
        Counts(splitter.unused_documents, splitter.unused_bytes, None),
    )


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
