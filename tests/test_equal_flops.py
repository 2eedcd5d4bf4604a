"""Loss at equal FLOPs: which seeds select the config, which are held out, and the counts of runs."""

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


def test_if_only_the_best_cell_was_repeated_its_other_seeds_are_held_out():
    cells = [cell(1e-3, 0, 2.5), cell(2e-3, 0, 2.3), cell(4e-3, 0, 2.6), cell(2e-3, 1, 2.42), cell(2e-3, 2, 2.44)]
    lr, choice = only_choice(cells)
    assert lr == 2e-3 and choice.held_out and choice.seeds == 2
    assert choice.loss_nats == pytest.approx(2.43)


def test_in_a_full_grid_the_first_half_of_the_seeds_selects_the_config():
    cells = [cell(1e-3, 0, 2.0), cell(2e-3, 0, 2.2), cell(1e-3, 1, 2.1), cell(2e-3, 1, 2.2),
             cell(1e-3, 2, 2.9), cell(2e-3, 2, 2.3)]  # fmt: skip
    lr, choice = only_choice(cells)
    assert lr == 1e-3 and choice.seeds == 1 and choice.loss_nats == 2.9  # seed 2 is held out
    assert choice.lowest_mean_nats == pytest.approx((2.2 + 2.2 + 2.3) / 3)


def test_with_one_seed_there_are_no_held_out_seeds():
    lr, choice = only_choice([cell(1e-3, 0, 2.0), cell(2e-3, 0, 2.2)])
    assert lr == 1e-3 and not choice.held_out and choice.interval is None


def test_a_cell_that_diverged_with_any_seed_is_not_selected():
    cells = [cell(1e-3, 0, 2.3), cell(2e-3, 0, 2.0), cell(2e-3, 1, None, "diverged")]
    assert only_choice(cells)[0] == 1e-3
    assert only_choice([cell(1e-3, 0, None, "diverged")]) is None
    assert only_choice([cell(1e-3, 0, None, "missing")]) is None


def test_a_cut_run_is_never_selected():
    lr, _ = only_choice([cell(1e-3, 0, 2.3), cell(2e-3, 0, 2.0, "cut")])
    assert lr == 1e-3


def test_runs_are_counted_by_status():
    cells = basin_cells(Basin(), [1, 4], range(-11, -6), [0, 1])
    for i, status in enumerate(("diverged", "cut", "missing", "failed")):
        cells[i] = replaced(cells[i], status=status, loss_nats=None)
    first, second = equal_flops(table_of(cells))
    assert (first["diverged"], first["cut"], first["missing"], first["trials"], first["points"]) == (1, 1, 2, 8, 5)
    assert (second["diverged"], second["cut"], second["missing"], second["trials"]) == (0, 0, 0, 10)
    assert first["best_run_loss_nats"] <= first["lowest_mean_loss_nats"]
    assert np.isfinite(second["chosen_loss_nats_low"])
