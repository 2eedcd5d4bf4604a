"""Widths, regrets and profiles of basins with known shapes."""

import numpy as np
import pytest
from grids import Basin, Cell, basin_cells, replaced, table_of

from smallbatch.analysis import robustness
from smallbatch.analysis.robustness import width_log2
from smallbatch.analysis.stats import surfaces

X = np.arange(-3.0, 4.0)


def summaries(cells: list[Cell]) -> list[dict]:
    return robustness.robustness(table_of(cells), 0.02)[0]


def test_the_width_of_a_v_shaped_basin_is_exact():
    width, beyond = width_log2(X, 2 + 0.1 * np.abs(X), 0.15)
    assert width == pytest.approx(3.0) and not beyond


def test_a_basin_that_reaches_an_edge_is_flagged():
    width, beyond = width_log2(X, 2 + 0.01 * np.abs(X - 3), 0.02)
    assert width == pytest.approx(2.0) and beyond


def test_a_basin_ends_before_a_diverged_config():
    losses = np.array([np.inf, 2.5, 2.0, 2.0, 2.01, np.inf, np.inf])
    width, beyond = width_log2(X, losses, 0.02)
    assert width == pytest.approx(2 + 0.04) and not beyond  # 0.04 of the step to 2.5


def test_a_second_basin_does_not_widen_the_first():
    losses = np.array([2.0, 2.5, 2.5, 2.5, 2.5, 2.01, 2.5])
    assert width_log2(X, losses, 0.02)[0] == pytest.approx(0.04)


def test_a_basin_narrower_than_a_grid_step_has_no_width():
    for curvature, width in ((0.03, 1.63), (0.015, 2.31)):  # 2 sqrt(0.02 / curvature)
        basin = Basin(curvature=curvature, lr_1=2.0**-9, exponent=0.0)
        (row,) = summaries(basin_cells(basin, [4], range(-13, -4), [0]))
        if curvature == 0.03:
            assert row["width_log2"] is None and "less than a factor of 4," in row["no_width_because"]
        else:
            assert row["width_log2"] == pytest.approx(width, abs=0.1) and row["no_width_because"] is None


def test_the_spans_of_cells_enclose_the_basin():
    tables = np.array([0.1 * np.abs(X), 0.01 * np.abs(X - 3), 0.3 * np.abs(X - 1)])
    inner, outer = robustness.cell_spans_log2(X, tables, 0.15)
    assert inner.tolist() == [2, 6, 0] and outer.tolist() == [4, np.inf, 2]


def test_decays_are_multiplied_by_their_half_lives():
    assert robustness.scale("optimizer.b1", 0.9) == pytest.approx(6.5788, abs=1e-4)
    ratio = robustness.scale("optimizer.b2", 0.999) / robustness.scale("optimizer.b2", 0.99)
    assert ratio == pytest.approx(10.045, abs=0.001)
    for value in (0, 0.0, -1.0, True, "cosine", None):
        assert np.isnan(robustness.scale("optimizer.peak_lr", value))


def test_a_profile_has_only_configs_that_differ_in_one_hyperparameter():
    basin = Basin()
    cells = [
        Cell({"train.batch_size": 4, "optimizer.peak_lr": 2.0**k, "optimizer.t2_tokens": t},
             basin.loss(4, 2.0**k) + 0.05 * abs(np.log2(t / 1e6)))
        for k in range(-12, -5) for t in (2.5e5, 1e6, 4e6)
    ]  # fmt: skip
    rows = summaries(cells)
    by_name = {row["hyperparameter"]: row for row in rows}
    assert by_name["optimizer.t2_tokens"]["tuned_value"] == 1e6
    assert by_name["optimizer.t2_tokens"]["width_log2"] is None  # 0.8 doublings, on a grid of 2
    assert by_name["optimizer.t2_tokens"]["no_width_because"] == (
        "it spans less than a factor of 16, and only one value of the grid is in it"
    )
    assert by_name["optimizer.t2_tokens"]["largest_regret_nats"] == pytest.approx(0.1)
    assert by_name["optimizer.peak_lr"]["cells"] == 7 and by_name["optimizer.peak_lr"]["edge_of_grid"] is None


def test_regret_is_taken_over_multipliers_up_to_8_and_infinite_if_one_diverged():
    cells = basin_cells(Basin(lr_1=2.0**-9, exponent=0.0), [4], range(-13, -4), [0])
    (row,) = summaries(cells)
    assert row["largest_regret_nats"] == pytest.approx(0.03 * 9)  # three doublings; four are beyond
    assert (row["regret_from_multiplier"], row["regret_to_multiplier"]) == (0.125, 8.0)
    far = [replaced(c, status="diverged") if c.values["optimizer.peak_lr"] == 2.0**-5 else c for c in cells]
    assert summaries(far)[0]["largest_regret_nats"] == pytest.approx(0.27)
    near = [replaced(c, status="diverged") if c.values["optimizer.peak_lr"] == 2.0**-7 else c for c in cells]
    assert summaries(near)[0]["largest_regret_nats"] == np.inf


def test_an_optimum_at_the_edge_is_flagged_and_missing_configs_are_counted():
    cells = basin_cells(Basin(lr_1=2.0**-12, exponent=0.0), [4], range(-12, -7), [0])
    cells[2] = replaced(cells[2], status="missing", loss_nats=None)
    (row,) = summaries(cells)
    assert row["edge_of_grid"] == "lowest" and row["missing"] == 1 and row["cells"] == 4


def test_a_map_has_the_lowest_loss_and_distinguishes_diverged_from_not_run():
    values = lambda lr, wd, t: {
        "train.batch_size": 4, "optimizer.peak_lr": lr, "optimizer.weight_decay": wd, "optimizer.t2_tokens": t
    }  # fmt: skip
    cells = [
        Cell(values(1e-3, 0.0, 1e6), 2.5), Cell(values(1e-3, 0.0, 2e6), 2.4), Cell(values(2e-3, 0.0, 1e6), 2.6),
        Cell(values(1e-3, 0.1, 1e6), None, "diverged"), Cell(values(2e-3, 0.1, 1e6), None, "missing"),
    ]  # fmt: skip
    rows = surfaces.surfaces(table_of(cells))
    found = {(r["x_value"], r["y_value"]): r["loss_nats"] for r in rows
             if (r["x"], r["y"]) == ("optimizer.peak_lr", "optimizer.weight_decay")}  # fmt: skip
    assert found == {(1e-3, 0.0): 2.4, (1e-3, 0.1): np.inf, (2e-3, 0.0): 2.6, (2e-3, 0.1): None}
