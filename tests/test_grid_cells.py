"""Cells are complete, valid configs with stable ids, and --only selects them by value."""

import pytest

from smallbatch import config as configs
from smallbatch.config import files as config_files
from smallbatch.errors import UserError
from smallbatch.grid import axis, point, product
from smallbatch.grid.cells import enumerate_cells, selected

GRID = product(axis("train.batch_size", [1, 4, 16]), axis("optimizer.peak_lr", [0.001, 0.002]))


def cells(grid=GRID):
    return enumerate_cells(configs.quickstart(), grid)


def test_the_id_of_a_cell_depends_on_its_config_alone():
    found = cells()
    assert len({cell.id for cell in found}) == 6
    assert {cell.id for cell in cells(GRID[::-1])} == {cell.id for cell in found}
    changed = configs.quickstart()
    changed.model.layers = 3
    assert not {cell.id for cell in enumerate_cells(changed, GRID)} & {cell.id for cell in found}
    moved = configs.quickstart()
    moved.data.cache_dir = "/elsewhere"
    assert {cell.id for cell in enumerate_cells(moved, GRID)} == {cell.id for cell in found}


def test_a_cell_overrides_the_base_config():
    cell = cells()[3]
    assert cell.values == {"train.batch_size": 4, "optimizer.peak_lr": 0.002}
    assert (cell.config.train.batch_size, cell.config.optimizer.peak_lr, cell.config.model.layers) == (4, 0.002, 4)
    assert cell.name == "batch_size=4 peak_lr=0.002"


def test_a_swept_key_that_a_cell_does_not_set_has_the_value_of_the_base():
    grid = ({"train.batch_size": 1}, {"optimizer.peak_lr": 0.5})
    assert [cell.values for cell in cells(grid)] == [
        {"train.batch_size": 1, "optimizer.peak_lr": 0.003},
        {"train.batch_size": 4, "optimizer.peak_lr": 0.5},
    ]


def test_cells_with_unequal_numbers_of_tokens_are_an_error():
    with pytest.raises(UserError) as info:
        cells(axis("train.batch_size", [3, 4, 6]))
    assert str(info.value) == (
        "train.budget_tokens=1,048,576, rounded up to whole updates, gives different numbers of tokens: "
        "1,048,576 at batch size 4, 1,049,088 at batch size 3. All cells must train on the same number; use 1,047,552 "
        "or 1,050,624, a multiple of the tokens per update of every cell"
    )
    for budget in (1_047_552, 1_050_624):
        grid = product(axis("train.batch_size", [3, 4, 6]), point({"train.budget_tokens": budget}))
        assert len(cells(grid)) == 3
    assert len(cells(axis("train.batch_size", [3, 6]))) == 2  # both are rounded up to the same number


def test_one_error_lists_every_invalid_cell():
    grid = product(axis("train.batch_size", [1, -3, 0]), axis("optimizer.peak_lr", [0.001]))
    with pytest.raises(UserError) as info:
        cells(grid)
    first, second, third = str(info.value).splitlines()
    assert first == "the grid has 2 invalid cells:"
    assert second.startswith("  cell 2 (train.batch_size=-3 optimizer.peak_lr=0.001): train.batch_size is -3")
    assert "train.batch_size is 0, but must be an integer in [1, 2^24]" in third


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (({"train.batchsize": 1},), "did you mean train.batch_size"),
        (({"train.batch_size": "four"},), "train.batch_size"),
        (({"train.batch_size": 4}, {"train.batch_size": 1}, {"train.batch_size": 4}), "cell 3.*same run as another"),
        (({"mesh.tensor": 1}, {"mesh.tensor": 2}), "cell 2.*same run as another cell .mesh.* does not change a run"),
        ((), "no cells"),
    ],
)
def test_an_invalid_grid_is_an_error(grid, words):
    with pytest.raises(UserError, match=words):
        cells(grid)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("None", r"returned None; is its return statement missing\?"),
        ("'train.seed'", "returned 'train.seed'"),
        ("[1, 2]", r"returned \[1, 2\]"),
        ("{'train.seed': 1}", "returned {'train.seed': 1}"),
        ("[{1: 2}]", "returned"),
    ],
)
def test_get_grid_must_return_cells(tmp_path, grid, words):
    (tmp_path / "grid.py").write_text(f"def get_grid():\n    return {grid}\n")
    with pytest.raises(UserError, match=f"grid.py must return cells, as product.. does, but {words}"):
        config_files.load_grid(str(tmp_path / "grid.py"))


def test_only_selects_cells_by_swept_values():
    assert [c.values["train.batch_size"] for c in selected(cells(), ["batch_size=4"])] == [4, 4]
    assert len(selected(cells(), ["train.batch_size=16", "peak_lr=1e-3"])) == 1
    with pytest.raises(UserError, match="there are 1, 4, 16"):
        selected(cells(), ["batch_size=2"])
    for words in ("batchsize=4", "layers=4", "batch_size"):
        with pytest.raises(UserError, match="does not name a swept key; write KEY=VALUE"):
            selected(cells(), [words])
