"""The standard error of the validation loss."""

import numpy as np
import pytest

from smallbatch.training.validation import standard_error


def test_with_sequences_of_equal_length_it_is_the_standard_error_of_a_mean():
    means_S = np.random.default_rng(0).normal(3.0, 0.5, 50)
    found = standard_error(means_S * 256, np.full(50, 256.0))
    assert found == pytest.approx(means_S.std(ddof=1) / np.sqrt(50), rel=1e-12)


def test_it_is_the_standard_deviation_over_other_validation_sets():
    rng = np.random.default_rng(1)
    targets_RxS = rng.integers(1, 257, (4000, 40)).astype(float)
    nats_RxS = targets_RxS * rng.normal(3.0, 0.5, targets_RxS.shape)
    losses_R = nats_RxS.sum(1) / targets_RxS.sum(1)
    found_R = [standard_error(nats, targets) for nats, targets in zip(nats_RxS[:400], targets_RxS, strict=False)]
    assert np.mean(found_R) == pytest.approx(losses_R.std(), rel=0.05)


def test_one_sequence_has_no_standard_error():
    assert standard_error(np.array([700.0]), np.array([256.0])) is None
