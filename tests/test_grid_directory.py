"""A sweep directory survives crashes and parallel commands; an invalid one is an error with a fix."""

import json
from pathlib import Path

import pytest

from smallbatch import config as configs
from smallbatch.errors import UserError
from smallbatch.files import json_files
from smallbatch.grid.axes import axis
from smallbatch.grid.cells import Cell, enumerate_cells
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.runs import records

BASE = configs.quickstart()
CELLS = enumerate_cells(BASE, axis("train.seed", [1, 2]))


def test_a_crash_before_the_grid_is_written_leaves_the_directory_usable(tmp_path, monkeypatch):
    def crash(*_):
        (tmp_path / "sweep" / ".grid.json.123.tmp").touch()
        raise InterruptedError

    directory = SweepDirectory(tmp_path / "sweep")
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(records, "write_json", crash)
        directory.write_grid("grid", BASE, CELLS)
    directory.write_grid("grid", BASE, CELLS)
    assert [cell.id for cell in directory.read_grid()] == [cell.id for cell in CELLS]


def test_a_directory_with_other_files_is_an_error(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no sweep; choose another --workdir"):
        SweepDirectory(tmp_path).write_grid("grid", BASE, CELLS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_mark_that_another_command_deletes_while_it_is_read_is_ignored(tmp_path, monkeypatch):
    directory = SweepDirectory(tmp_path)
    directory.mark("a", "failed", {"error": "no luck"})
    assert directory.state("a").error == "no luck"
    read = json_files.read

    def too_late(path, *fix):
        Path(path).unlink(missing_ok=True)
        return read(path, *fix)

    monkeypatch.setattr(json_files, "read", too_late)
    assert directory.state("a").status == "missing"


def test_a_directory_without_a_sweep_of_this_version_is_an_error_with_a_fix(tmp_path):
    directory = SweepDirectory(tmp_path)
    with pytest.raises(UserError, match=r"it has no grid.json; set --workdir to one"):
        directory.read_grid()
    directory.write_grid("grid", BASE, CELLS)
    asked = json_files.read(directory.grid_json)
    for change, words in (({"format": 0}, "by another version"), ({"cells": asked["cells"][:1] * 2}, "same run")):
        directory.grid_json.write_text(json.dumps(asked | change))
        with pytest.raises(UserError, match=words):
            directory.read_grid()
    asked["cells"][0]["id"] = "another"
    directory.grid_json.write_text(json.dumps(asked))
    with pytest.raises(UserError, match="use that one, or another --workdir"):
        directory.read_grid()


def test_results_csv_escapes_formulas_and_keeps_numbers(tmp_path):
    cells = [Cell(text, {"data.source": text, "train.seed": -1}, {}) for text in ("=1+1", "plain")]
    directory = SweepDirectory(tmp_path)
    directory.write_results(cells, {cell.id: directory.state(cell.id) for cell in cells})
    lines = directory.results_csv.read_text().splitlines()
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ["'=1+1", "'=1+1", "-1", "missing"],
        ["plain", "plain", "-1", "missing"],
    ]


@pytest.fixture
def started(tmp_path) -> SweepDirectory:
    """A sweep whose cells have all been started."""
    directory = SweepDirectory(tmp_path)
    directory.write_grid("grid", BASE, CELLS)
    for cell in CELLS:
        directory.cell(cell.id).path.mkdir(parents=True)
        records.write_json(directory.cell(cell.id).config, cell.config.to_dict())
    return directory


DAMAGES = {
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "a misspelled key": lambda text: text.replace('"cells"', '"cellz"'),
    "a misspelled key of the config": lambda text: text.replace("peak_lr", "pezk_lr"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_grid_json_is_an_error_and_deleting_it_keeps_the_cells(started, damage):
    started.grid_json.write_text(damage(started.grid_json.read_text()))
    before = started.grid_json.read_bytes()
    for use in (started.read_grid, lambda: started.write_grid("grid", BASE, CELLS)):
        with pytest.raises(UserError, match="delete it and rerun the sweep with its --config"):
            use()
    assert started.grid_json.read_bytes() == before
    started.grid_json.unlink()
    assert started.write_grid("grid", BASE, CELLS) == 0
    assert [cell.id for cell in started.read_grid()] == [cell.id for cell in CELLS]
    assert started.write_grid("grid", BASE, CELLS[:1]) == 1  # one cell is not in this grid


def test_a_grid_json_of_another_version_is_not_overwritten(started):
    started.grid_json.write_text(json.dumps(json_files.read(started.grid_json) | {"format": 2}))
    with pytest.raises(UserError, match="was written by another version"):
        started.write_grid("grid", BASE, CELLS)
