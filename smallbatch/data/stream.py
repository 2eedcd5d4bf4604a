"""Token windows for training and validation, each a pure function of its position.

Sequence n of a split is tokens [n*T, n*T + T]: T inputs and, one further, T targets, so every token but the
first is a target once an epoch. Single sequences are shuffled, never batches, and a batch is a run of
consecutive positions of that one order: the batch size only regroups it.
"""

import functools
from collections.abc import Iterator

import numpy as np

from smallbatch.data.shards import Dataset, TokenArray
from smallbatch.errors import UserError

# With the 4 rounds of MapDataset, sequences two steps apart are correlated: r = -0.37 in an epoch of 65,536.
ROUNDS = 8


class TrainStream:
    """The training sequences, shuffled anew each epoch, forever; any position is reached at once."""

    def __init__(self, dataset: Dataset, context_tokens: int, seed: int):
        from grain.experimental import index_shuffle  # imports JAX, which preparing data does not need

        windows = _Windows(dataset.train, context_tokens)
        if len(windows) < 1:
            raise UserError(
                f"the training split of {len(dataset.train):,} tokens is smaller than one sequence of "
                f"{context_tokens:,} + 1; lower model.context_tokens or use a larger corpus"
            )
        self.sequences_per_epoch = len(windows)
        self._windows, self._seed, self._index_shuffle = windows, seed, index_shuffle

    def batch(self, first_sequence: int, sequences: int) -> np.ndarray:
        """Return the stream from position first_sequence on: int32 [sequences, T + 1]."""
        tokens_BxT1 = np.empty((sequences, self._windows.context_tokens + 1), dtype=np.int32)
        for row in range(sequences):
            tokens_BxT1[row] = self._windows[self._shuffled(first_sequence + row)]
        return tokens_BxT1

    def _shuffled(self, position: int) -> int:
        # The keyed permutation behind MapDataset.shuffle of grain, evaluated at one point: 20 us a sequence
        # where a MapDataset takes 100, which is more than a step at batch size 1 can spare.
        epoch, index = divmod(position, self.sequences_per_epoch)
        last = self.sequences_per_epoch - 1
        return self._index_shuffle(index, max_index=last, seed=epoch_seed(self._seed, epoch), rounds=ROUNDS)


@functools.lru_cache(maxsize=4)
def epoch_seed(seed: int, epoch: int) -> int:
    """Return the 32-bit key of an epoch's permutation; keys of other seeds and epochs are unrelated."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def validation_batches(
    dataset: Dataset, context_tokens: int, batch_seqs: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (tokens_BxT1 int32, weights_BxT float32): every target of the validation split exactly once.

    All batches have one shape: where the split ends, zeros with weight 0 fill the last window and rows.
    """
    targets = len(dataset.validation) - 1
    batch_tokens = batch_seqs * context_tokens
    for start in range(0, targets, batch_tokens):
        used = min(batch_tokens, targets - start)
        stream = np.zeros(batch_tokens + 1, dtype=np.int32)
        stream[: used + 1] = dataset.validation.window(start, used + 1)
        rows = np.lib.stride_tricks.sliding_window_view(stream, context_tokens + 1)[::context_tokens]
        weights_BxT = (np.arange(batch_tokens) < used).astype(np.float32).reshape(batch_seqs, context_tokens)
        yield rows.copy(), weights_BxT


class _Windows:
    """The sequences of a split in corpus order."""

    def __init__(self, tokens: TokenArray, context_tokens: int):
        self.context_tokens = context_tokens
        self._tokens = tokens

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self.context_tokens

    def __getitem__(self, number: int) -> np.ndarray:
        return self._tokens.window(number * self.context_tokens, self.context_tokens + 1)
