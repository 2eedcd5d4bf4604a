import dataclasses
from pathlib import Path

import numpy as np
import pytest
from data_specs import data_spec, sentences, write_corpus

from smallbatch.data.dataset import Counts, Dataset, DatasetMeta
from smallbatch.data.prepare import prepare
from smallbatch.data.stream import (
    ROUNDS,
    WRONG_SIZES,
    TrainStream,
    check_splits,
    describe_splits,
    epoch_seed,
    validation_batches,
)
from smallbatch.errors import UserError


def counting_dataset(train_tokens: int, validation_tokens: int = 2) -> Dataset:
    """A dataset whose token at position p is p, so that a batch shows where it was read."""
    none = Counts(None, None, None)
    meta = DatasetMeta(1, "", "", 2**31, None, "uint32", none, none, none, "", "", "", "", {})
    train, validation = (np.arange(n, dtype=np.uint32) for n in (train_tokens, validation_tokens))
    return Dataset(Path(), meta, train, validation)


def starts(stream: TrainStream, first: int, count: int) -> list[int]:
    return stream.batch(first, count)[:, 0].tolist()


def test_token_stream_is_identical_at_every_batch_size():
    stream = TrainStream(counting_dataset(801), context_tokens=8, seed=3)  # 100 sequences; 240 cross two epochs
    whole = stream.batch(0, 240)
    for batch in (1, 2, 3, 16, 120):
        other = TrainStream(counting_dataset(801), context_tokens=8, seed=3)
        parts = [other.batch(first, batch) for first in range(0, 240, batch)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole.dtype == np.int32 and whole.shape == (240, 9)


def test_batch_depends_on_its_position_alone():
    walked = TrainStream(counting_dataset(801), 8, seed=0)
    for first in range(500):
        walked.batch(first, 1)
    fresh = TrainStream(counting_dataset(801), 8, seed=0)
    far = 10**12  # no earlier batch is read
    np.testing.assert_array_equal(fresh.batch(far, 4), walked.batch(far, 4))
    np.testing.assert_array_equal(fresh.batch(777, 4), walked.batch(777, 4))


def test_every_token_but_the_first_is_a_target_once():
    batch = TrainStream(counting_dataset(801), 8, seed=0).batch(0, 100)
    np.testing.assert_array_equal(batch - batch[:, :1], np.tile(np.arange(9), (100, 1)))
    targets = np.sort(batch[:, 1:].ravel())
    np.testing.assert_array_equal(targets, np.arange(1, 801))  # every token but the first, once


@pytest.mark.parametrize("sequences", [1, 2, 3, 97, 256, 1000])
def test_every_epoch_is_a_permutation_and_epochs_and_seeds_differ(sequences):
    dataset = counting_dataset(sequences * 4 + 3)  # two tokens too few for another sequence
    stream = TrainStream(dataset, 4, seed=0)
    assert stream.sequences_per_epoch == sequences
    epochs = [starts(stream, epoch * sequences, sequences) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(0, sequences * 4, 4)) for epoch in epochs)
    if sequences > 50:
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
        # Seed 1 is not seed 0 one epoch later.
        other = [starts(TrainStream(dataset, 4, seed=1), epoch * sequences, sequences) for epoch in range(2)]
        assert all(epoch not in epochs for epoch in other)


@pytest.mark.parametrize("seed, sequences", [(7, 2**16 + 1), (0, 2**18 + 1)])
def test_sizes_where_grain_repeats_an_index_are_corrected(seed, sequences):
    stream = TrainStream(counting_dataset(sequences + 1), 1, seed)
    order = np.fromiter((stream._shuffled(position) for position in range(sequences)), dtype=np.int64)
    assert np.bincount(order, minlength=sequences).tolist() == [1] * sequences


@pytest.mark.parametrize("seed", [0, 1, 99])
@pytest.mark.parametrize("power", range(1, 21))
def test_highest_index_is_unique_at_sizes_around_powers_of_two(power, seed):
    """A cipher with too few bits maps the highest index to the image of its lower bits."""
    for sequences in (2**power - 1, 2**power, 2**power + 1, 2**power + 2):
        stream = TrainStream(counting_dataset(sequences + 1), 1, seed)
        last = sequences - 1
        lower = {last & (2**bits - 1) for bits in range(22)} - {last}
        ends = [stream._shuffled(position) for position in (last, *lower)]
        assert len(set(ends)) == len(ends) and 0 <= min(ends) <= max(ends) <= last


def test_order_equals_grain_at_all_other_sizes():
    from grain.experimental import index_shuffle

    for sequences in (2**16, 2**16 + 2, 2**17 + 1, 2**20):
        stream = TrainStream(counting_dataset(sequences + 1), 1, 3)
        key = {"max_index": sequences - 1, "seed": epoch_seed(3, 0), "rounds": ROUNDS}
        assert [stream._shuffled(n) for n in range(100)] == [index_shuffle(n, **key) for n in range(100)]
    assert {2**16 + 1, 2**18 + 1, 2**20 + 1} <= WRONG_SIZES and not {2**17 + 1, 2**14 + 1} & WRONG_SIZES


def test_validation_set_below_one_sequence_is_an_error():
    check_splits(counting_dataset(9, validation_tokens=9), 8)
    with pytest.raises(UserError, match=r"validation split has 8 tokens, but one sequence needs 8 \+ 1; .*max_b"):
        check_splits(counting_dataset(9, validation_tokens=8), 8)


def test_sizes_and_a_small_validation_set_are_reported():
    training, validation, warning = describe_splits(counting_dataset(30, validation_tokens=101), 8)
    assert training.endswith("30 tokens = 3 sequences of 8; the last 5 tokens are never targets")
    assert validation == "validation set: 101 tokens = 12.5 sequences of 8"
    assert "has only 100 targets" in warning and "about 0.2 nats" in warning
    training, _ = describe_splits(counting_dataset(33, validation_tokens=20_001), 8)
    assert training.endswith("every token but the first is a target")


def test_order_equals_grain_shuffle_with_more_rounds():
    import grain
    from grain.experimental import index_shuffle

    stream = TrainStream(counting_dataset(401), 4, seed=5)
    stream._index_shuffle = lambda index, **k: index_shuffle(index, **(k | {"rounds": 4}))
    for epoch in range(2):
        order = grain.MapDataset.range(100).shuffle(seed=epoch_seed(5, epoch))
        assert starts(stream, epoch * 100, 100) == [4 * order[n] for n in range(100)]
    assert ROUNDS > 4  # the next test fails with 4


def test_consecutive_sequences_are_uncorrelated():
    """A random order of n has lagged correlations of about 1 / sqrt(n); grain's 4 rounds give r = -0.37."""
    sequences = 2**16
    order = np.array(starts(TrainStream(counting_dataset(sequences + 1), 1, seed=0), 0, sequences))
    for lag in (1, 2, 3, 4, 8, 16):
        r = np.corrcoef(order[:-lag], order[lag:])[0, 1]
        assert abs(r) < 5 / np.sqrt(sequences), lag
    near = np.mean(np.abs(np.diff(order)) <= 100)  # expected: 200 / 65,536, give or take 2.1e-4
    assert abs(near - 200 / sequences) < 5 * 2.1e-4


def test_corpus_below_one_sequence_is_an_error():
    with pytest.raises(UserError, match=r"8 tokens, but one sequence needs 8 \+ 1.*context_tokens"):
        TrainStream(counting_dataset(8), 8, seed=0)
    assert TrainStream(counting_dataset(9), 8, seed=0).sequences_per_epoch == 1


@pytest.mark.parametrize("context, batch", [(1, 1), (4, 1), (7, 3), (8, 4), (100, 2), (1000, 2)])
def test_validation_includes_every_target_once(context, batch):
    dataset = counting_dataset(9, validation_tokens=101)
    targets, shapes = [], set()
    for tokens_BxT1, weights_BxT in validation_batches(dataset, context, batch):
        shapes.add((tokens_BxT1.shape, weights_BxT.shape))
        assert (tokens_BxT1.dtype, weights_BxT.dtype) == (np.int32, np.float32)
        scored = weights_BxT == 1
        assert np.all(weights_BxT[~scored] == 0)
        targets += tokens_BxT1[:, 1:][scored].tolist()
        assert np.all(tokens_BxT1[:, :-1][scored] == tokens_BxT1[:, 1:][scored] - 1)
    assert shapes == {((batch, context + 1), (batch, context))}
    assert targets == list(range(1, 101))


def test_validation_set_does_not_depend_on_the_seed(tmp_path):
    dataset = prepare(data_spec(tmp_path / "cache", source=write_corpus(tmp_path / "corpus", sentences(60))))

    def first_after(seed: int) -> np.ndarray:
        TrainStream(dataset, 16, seed).batch(0, 4)
        return np.concatenate([tokens for tokens, _ in validation_batches(dataset, 16, 4)])

    np.testing.assert_array_equal(first_after(0), first_after(1))


def test_a_dataset_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        counting_dataset(9).train = None  # pyright: ignore
