"""A grid is what its words say, and a contradiction in it is refused."""

import pytest

from smallbatch.errors import UserError
from smallbatch.grid import axis, by_batch_size, chain, log2_range, multiplied, point, product, seeds, where, zipped

B, LR = "train.batch_size", "optimizer.peak_lr"


def test_a_product_has_every_combination_the_last_axis_fastest():
    found = product(axis(B, [1, 4]), axis(LR, [0.1, 0.2, 0.4]))
    assert [tuple(cell.values()) for cell in found] == [(b, lr) for b in (1, 4) for lr in (0.1, 0.2, 0.4)]
    assert product(point({"optimizer.name": "sgd"}), seeds(2)) == (
        {"optimizer.name": "sgd", "train.seed": 0},
        {"optimizer.name": "sgd", "train.seed": 1},
    )


def test_zipped_goes_through_grids_together_and_chain_one_after_the_other():
    assert zipped(axis(B, [1, 4]), axis(LR, [0.1, 0.2])) == ({B: 1, LR: 0.1}, {B: 4, LR: 0.2})
    assert chain(axis(B, [1]), axis(LR, [0.1])) == ({B: 1}, {LR: 0.1})
    assert where(axis(B, [1, 4, 16]), lambda cell: cell[B] > 1) == axis(B, [4, 16])


def test_log2_range_is_geometric_and_keeps_its_ends():
    assert log2_range(0.001, 0.008) == (0.001, 0.002, 0.004, 0.008)
    assert log2_range(1, 2, per_octave=2) == pytest.approx((1, 2**0.5, 2))
    assert len(log2_range(2**-3, 2**3, per_octave=2)) == 13
    assert log2_range(0.3, 0.3) == (0.3,)


def test_a_tuned_centre_per_batch_size_and_multipliers_around_it():
    centres = by_batch_size(axis(B, [1, 4]), LR, {1: 0.01, 4: 0.02})
    assert multiplied(centres, LR, (0.5, 2.0)) == (
        {B: 1, LR: 0.005},
        {B: 1, LR: 0.02},
        {B: 4, LR: 0.01},
        {B: 4, LR: 0.04},
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: product(axis(B, [1]), axis(B, [4])), "sets train.batch_size twice"),
        (lambda: zipped(axis(B, [1]), axis(LR, [0.1, 0.2])), "same size, not 1, 2"),
        (lambda: axis(B, []), "has no values"),
        (lambda: log2_range(2.0, 1.0), "low <= high"),
        (lambda: multiplied(axis(B, [1]), LR, (2.0,)), "no optimizer.peak_lr to multiply"),
        (lambda: by_batch_size(axis(B, [2]), LR, {1: 0.1}), "no optimizer.peak_lr for the batch size"),
    ],
)
def test_a_contradiction_says_where_it_is(make, words):
    with pytest.raises(UserError, match=words):
        make()
