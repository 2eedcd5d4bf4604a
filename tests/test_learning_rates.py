"""Best learning rates and their power law."""

import numpy as np
import pytest
from grids import Basin, Cell, basin_cells, table_of

from smallbatch.analysis import learning_rates
from smallbatch.analysis.learning_rates import vertex_log2


def test_the_vertex_may_be_between_grid_values():
    x = np.arange(-2.0, 3.0)
    tables = np.stack([(x - shift) ** 2 for shift in (-0.3, 0.0, 0.7)])
    assert vertex_log2(x, tables) == pytest.approx([-0.3, 0.0, 0.7])
    assert vertex_log2(x, -((x - 0.3) ** 2)) == -2.0  # opens downwards: the end with the lower loss


def test_a_known_basin_gives_its_exponent():
    rows, (law,) = learning_rates.learning_rates(
        table_of(basin_cells(Basin(exponent=0.3), [1, 4, 16, 64], range(-13, -3), [0]))
    )
    assert law["exponent"] == pytest.approx(0.3, abs=1e-6) and law["coefficient"] == pytest.approx(0.002)
    assert [row["best_learning_rate"] for row in rows] == pytest.approx([0.002 * b**0.3 for b in (1, 4, 16, 64)])


def test_an_optimum_at_the_edge_is_flagged_and_excluded_from_the_law():
    cells = basin_cells(Basin(exponent=0.5), [1, 4, 16, 4096], range(-12, -5), [0])
    rows, (law,) = learning_rates.learning_rates(table_of(cells))
    assert rows[-1]["edge_of_grid"] == "highest" and rows[-1]["best_learning_rate"] is None
    assert law["left_out_at_edge"] == 1 and law["exponent"] == pytest.approx(0.5, abs=1e-6)


def test_tuned_values_are_fitted_directly():
    cells = [Cell({"train.batch_size": b, "optimizer.peak_lr": 0.001 * b**0.5}, 3.0) for b in (1, 4, 16)]
    rows, (law,) = learning_rates.learning_rates(table_of(cells))
    assert [row["tuned_learning_rate"] for row in rows] == pytest.approx([0.001, 0.002, 0.004])
    assert law["exponent"] == pytest.approx(0.5)
