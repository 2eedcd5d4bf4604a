"""Functions that build grids keep the order of cells and reject contradictions."""

import pytest

from smallbatch.errors import UserError
from smallbatch.grid import axis, by_batch_size, chain, log2_range, multiplied, point, product, seeds

B, LR = "train.batch_size", "optimizer.peak_lr"


def test_product_has_every_combination_and_the_last_axis_varies_fastest():
    found = product(axis(B, [1, 4]), axis(LR, [0.1, 0.2, 0.4]))
    assert [tuple(cell.values()) for cell in found] == [(b, lr) for b in (1, 4) for lr in (0.1, 0.2, 0.4)]
    assert product(point({"optimizer.name": "sgd"}), seeds(2)) == (
        {"optimizer.name": "sgd", "train.seed": 0},
        {"optimizer.name": "sgd", "train.seed": 1},
    )


def test_chain_appends_grids():
    assert chain(axis(B, [1]), axis(LR, [0.1])) == ({B: 1}, {LR: 0.1})


def test_log2_range_is_geometric_and_includes_its_ends():
    assert log2_range(0.001, 0.008) == (0.001, 0.002, 0.004, 0.008)
    assert log2_range(1, 2, per_octave=2) == pytest.approx((1, 2**0.5, 2))
    assert len(log2_range(2**-3, 2**3, per_octave=2)) == 13
    assert log2_range(0.3, 0.3) == (0.3,)


def test_a_center_per_batch_size_is_multiplied_by_factors():
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
        (lambda: axis(B, []), "has no values"),
        (lambda: log2_range(2.0, 1.0), "low <= high"),
        (lambda: multiplied(axis(B, [1]), LR, (2.0,)), "no optimizer.peak_lr to multiply"),
        (lambda: by_batch_size(axis(B, [2]), LR, {1: 0.1}), "no optimizer.peak_lr for its batch size"),
    ],
)
def test_a_contradiction_is_an_error_that_names_the_key(make, words):
    with pytest.raises(UserError, match=words):
        make()
