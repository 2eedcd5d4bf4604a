"""Token windows for training and validation, each a pure function of its position.

Sequence n of a split is tokens n*T to n*T + T inclusive: T inputs, and T targets shifted by one. A split of N tokens
has (N - 1) // T sequences. An epoch includes each of their targets once; the (N - 1) % T tokens after the last sequence
are never targets in training. Sequences are shuffled one by one, and a batch is a slice of that order, so the batch
size does not change the order.
"""

import functools
from collections.abc import Iterator

import numpy as np

from smallbatch.data.dataset import Dataset
from smallbatch.errors import UserError

# With the 4 rounds of MapDataset, sequences two steps apart are correlated: r = -0.37 in an epoch of 65,536.
ROUNDS = 8
# Sizes for which index_shuffle of grain 0.2.18 omits one index. Its cipher has ceil(log2(size - 1)) bits, rounded up to
# an even number of at least 16; it needs one more if size - 1 is a power of 4.
WRONG_SIZES = frozenset(4**k + 1 for k in range(8, 32))
FEW_VALIDATION_TARGETS = 10_000
NATS_SPREAD = 2.0  # typical standard deviation of one token's loss


class TrainStream:
    """The training sequences, reshuffled in each epoch, with random access to every position."""

    def __init__(self, dataset: Dataset, context_tokens: int, seed: int):
        from grain.experimental import index_shuffle  # imports JAX, which preparing data does not need

        _check_one_sequence("training", len(dataset.train), context_tokens, "use a larger corpus")
        self.sequences_per_epoch = (len(dataset.train) - 1) // context_tokens
        self._tokens, self._context_tokens = dataset.train, context_tokens
        self._seed, self._index_shuffle = seed, index_shuffle

    def batch(self, first_sequence: int, sequences: int) -> np.ndarray:
        """Return `sequences` sequences from position first_sequence: int32 [sequences, T + 1]."""
        tokens_BxT1 = np.empty((sequences, self._context_tokens + 1), dtype=np.int32)
        for row in range(sequences):
            start = self._shuffled(first_sequence + row) * self._context_tokens
            tokens_BxT1[row] = self._tokens[start : start + self._context_tokens + 1]
        return tokens_BxT1

    def _shuffled(self, position: int) -> int:
        # The keyed permutation of grain's MapDataset.shuffle, evaluated at one index. It takes 20 us; a MapDataset
        # takes 100 us, a large fraction of a step at batch size 1.
        epoch, index = divmod(position, self.sequences_per_epoch)
        seed, size = epoch_seed(self._seed, epoch), self.sequences_per_epoch
        if size not in WRONG_SIZES:
            return self._index_shuffle(index, max_index=size - 1, seed=seed, rounds=ROUNDS)
        # Cycle walking: permute size + 1 indices. An index that maps to the extra one is mapped again.
        shuffled = self._index_shuffle(index, max_index=size, seed=seed, rounds=ROUNDS)
        if shuffled == size:
            shuffled = self._index_shuffle(size, max_index=size, seed=seed, rounds=ROUNDS)
        return shuffled


@functools.lru_cache(maxsize=4)
def epoch_seed(seed: int, epoch: int) -> int:
    """Return the 32-bit key of an epoch's permutation; independent of those of other seeds and epochs."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def check_splits(dataset: Dataset, context_tokens: int) -> None:
    """Raise UserError unless both splits have at least one sequence, which is context_tokens + 1 tokens."""
    _check_one_sequence("training", len(dataset.train), context_tokens, "use a larger corpus")
    fix = "raise data.validation_frac or data.validation_max_bytes, or use a larger corpus"
    _check_one_sequence("validation", len(dataset.validation), context_tokens, fix)


def _check_one_sequence(split: str, tokens: int, context_tokens: int, fix: str) -> None:
    if tokens < context_tokens + 1:
        raise UserError(
            f"the {split} split has {tokens:,} tokens, but one sequence needs {context_tokens:,} + 1; "
            f"lower model.context_tokens, or {fix}"
        )


def describe_splits(dataset: Dataset, context_tokens: int) -> list[str]:
    """Return lines with the sizes of both splits, and a warning if the validation set is small."""
    sequences, tail = divmod(len(dataset.train) - 1, context_tokens)
    lines = [
        f"training set: {len(dataset.train):,} tokens = {sequences:,} sequences of {context_tokens:,}; "
        f"{'every token but the first is a target' if not tail else f'the last {tail:,} tokens are never targets'}"
    ]
    targets, documents = len(dataset.validation) - 1, dataset.meta.validation.documents
    known = "" if documents is None else f" in {documents:,} document{'s' * (documents != 1)}"
    lines.append(
        f"validation set: {targets + 1:,} tokens{known} = {targets / context_tokens:,.1f} sequences of "
        f"{context_tokens:,}"
    )
    if targets < FEW_VALIDATION_TARGETS or documents == 1:
        lines.append(
            f"warning: the validation set has only {targets:,} targets{known}, so the standard error of the validation "
            f"loss is about {NATS_SPREAD / targets**0.5:.2g} nats or more; raise data.validation_frac or "
            "data.validation_max_bytes"
        )
    return lines


def validation_batches(
    dataset: Dataset, context_tokens: int, batch_seqs: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (tokens_BxT1 int32, weights_BxT float32): every target of the validation split exactly once.

    All batches have the same shape: the last one is padded with zeros of weight 0.
    """
    targets = len(dataset.validation) - 1
    batch_tokens = batch_seqs * context_tokens
    for start in range(0, targets, batch_tokens):
        used = min(batch_tokens, targets - start)
        stream = np.zeros(batch_tokens + 1, dtype=np.int32)
        stream[: used + 1] = dataset.validation[start : start + used + 1]
        rows = np.lib.stride_tricks.sliding_window_view(stream, context_tokens + 1)[::context_tokens]
        weights_BxT = (np.arange(batch_tokens) < used).astype(np.float32).reshape(batch_seqs, context_tokens)
        yield rows.copy(), weights_BxT
