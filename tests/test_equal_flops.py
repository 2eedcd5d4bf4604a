"""Loss at equal FLOPs: which seeds choose, which report, and what is counted."""

import numpy as np
import pytest
from grids import Basin, Cell, basin_cells, replaced, table_of

from smallbatch.analysis.stats.equal_flops import choose, equal_flops


def cell(lr, seed, loss, status="done"):
    return Cell({"train.batch_size": 4, "optimizer.peak_lr": lr, "train.seed": seed}, loss, status)


def only_choice(cells):
    (group,) = table_of(cells).groups
    choice = choose(group)
    return choice and (dict(group.points[choice.index])["optimizer.peak_lr"], choice)


def test_where_only_the_best_cell_was_repeated_the_repetitions_report():
    cells = [cell(1e-3, 0, 2.5), cell(2e-3, 0, 2.3), cell(4e-3, 0, 2.6), cell(2e-3, 1, 2.42), cell(2e-3, 2, 2.44)]
    lr, choice = only_choice(cells)
    assert lr == 2e-3 and choice.held_out and choice.seeds == 2
    assert choice.loss_nats == pytest.approx(2.43)


def test_a_full_grid_is_chosen_by_the_first_half_of_its_seeds():
    cells = [cell(1e-3, 0, 2.0), cell(2e-3, 0, 2.2), cell(1e-3, 1, 2.1), cell(2e-3, 1, 2.2),
             cell(1e-3, 2, 2.9), cell(2e-3, 2, 2.3)]  # fmt: skip
    lr, choice = only_choice(cells)
    assert lr == 1e-3 and choice.seeds == 1 and choice.loss_nats == 2.9  # seed 2 had no say
    assert choice.lowest_mean_nats == pytest.approx((2.2 + 2.2 + 2.3) / 3)


def test_one_seed_chooses_and_reports_and_that_is_said():
    lr, choice = only_choice([cell(1e-3, 0, 2.0), cell(2e-3, 0, 2.2)])
    assert lr == 1e-3 and not choice.held_out and choice.interval is None


def test_a_cell_that_diverged_with_any_seed_is_not_chosen():
    cells = [cell(1e-3, 0, 2.3), cell(2e-3, 0, 2.0), cell(2e-3, 1, None, "diverged")]
    assert only_choice(cells)[0] == 1e-3
    assert only_choice([cell(1e-3, 0, None, "diverged")]) is None
    assert only_choice([cell(1e-3, 0, None, "missing")]) is None


def test_a_run_cut_short_is_never_chosen():
    lr, _ = only_choice([cell(1e-3, 0, 2.3), cell(2e-3, 0, 2.0, "cut")])
    assert lr == 1e-3


def test_every_run_is_counted_for_what_became_of_it():
    cells = basin_cells(Basin(), [1, 4], range(-11, -6), [0, 1])
    for i, status in enumerate(("diverged", "cut", "missing", "failed")):
        cells[i] = replaced(cells[i], status=status, loss_nats=None)
    first, second = equal_flops(table_of(cells))
    assert (first["diverged"], first["cut"], first["missing"], first["trials"], first["points"]) == (1, 1, 2, 8, 5)
    assert (second["diverged"], second["cut"], second["missing"], second["trials"]) == (0, 0, 0, 10)
    assert first["best_run_loss_nats"] <= first["lowest_mean_loss_nats"]
    assert np.isfinite(second["chosen_loss_nats_low"])
