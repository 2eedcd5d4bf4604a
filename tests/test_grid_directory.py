"""A sweep directory survives a crash at any moment and two commands at once; what is none is named, with a way out."""

import json
from pathlib import Path

import pytest

from smallbatch import config as configs
from smallbatch.errors import UserError
from smallbatch.files import json_files
from smallbatch.grid import command
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


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no sweep; choose another --workdir"):
        SweepDirectory(tmp_path).write_grid("grid", BASE, CELLS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_mark_that_another_command_forgets_meanwhile_is_none(tmp_path, monkeypatch):
    directory = SweepDirectory(tmp_path)
    directory.mark("a", "failed", {"error": "no luck"})
    assert directory.state("a").error == "no luck"
    read = json_files.read

    def too_late(path, *fix):
        Path(path).unlink(missing_ok=True)
        return read(path, *fix)

    monkeypatch.setattr(json_files, "read", too_late)
    assert directory.state("a").status == "missing"


def test_what_is_no_sweep_of_this_version_is_told_with_the_way_out(tmp_path):
    directory = SweepDirectory(tmp_path)
    with pytest.raises(UserError, match=r"it has no grid.json; name one by --workdir"):
        directory.read_grid()
    directory.write_grid("grid", BASE, CELLS)
    asked = json_files.read(directory.grid_json)
    for change, words in (({"format": 0}, "by this version"), ({"cells": asked["cells"][:1] * 2}, "same run")):
        directory.grid_json.write_text(json.dumps(asked | change))
        with pytest.raises(UserError, match=words):
            directory.read_grid()
    asked["cells"][0]["id"] = "another"
    directory.grid_json.write_text(json.dumps(asked))
    with pytest.raises(UserError, match="use the version that wrote it, or another --workdir"):
        directory.read_grid()


def test_text_in_results_csv_is_no_formula_and_numbers_stay_numbers(tmp_path):
    cells = [Cell(text, {"data.source": text, "train.seed": -1}, {}) for text in ("=1+1", "plain")]
    directory = SweepDirectory(tmp_path)
    directory.write_results(cells, {cell.id: directory.state(cell.id) for cell in cells})
    lines = directory.results_csv.read_text().splitlines()
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ["'=1+1", "'=1+1", "-1", "missing"],
        ["plain", "plain", "-1", "missing"],
    ]


def begun(path: Path) -> SweepDirectory:
    """Return a sweep of which both cells have been started."""
    directory = SweepDirectory(path)
    directory.write_grid("grid", BASE, CELLS)
    for cell in CELLS:
        directory.cell(cell.id).path.mkdir(parents=True)
        records.write_json(directory.cell(cell.id).config, cell.config.to_dict())
    return directory


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "a list": lambda path: path.write_text("[]"),
    "a misspelled key": lambda path: path.write_text(path.read_text().replace('"cells"', '"cellz"')),
    "a misspelled key of the config": lambda path: path.write_text(path.read_text().replace("peak_lr", "pezk_lr")),
    "a changed id": lambda path: path.write_text(path.read_text().replace(CELLS[0].id, "0" * 12)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_grid_json_is_written_again_and_the_cells_stay(tmp_path, damage, capsys):
    directory = begun(tmp_path)
    damage(directory.grid_json)
    assert {cell.id: cell.values for cell in directory.begun_cells()} == {cell.id: cell.values for cell in CELLS}
    assert directory.write_grid("grid", BASE, CELLS[:1]) == 1  # one cell is not of this grid
    assert [cell.id for cell in directory.read_grid()] == [CELLS[0].id]
    assert ("rewriting it now" in capsys.readouterr().err) == (damage is not DAMAGES["missing"])


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_status_of_a_sweep_without_its_grid_json_is_that_of_the_cells_that_were_started(tmp_path, damage):
    directory = begun(tmp_path)
    damage(directory.grid_json)
    note, head, row = command.status_text(directory).splitlines()
    assert "grid.json" in note and note.endswith("The table shows only the 2 cells that were started.")
    assert (head.split(), row.split()) == (["batch", "missing"], [str(BASE.train.batch_size), "2"])


def test_a_grid_json_of_another_version_is_not_written_over(tmp_path):
    directory = begun(tmp_path)
    cell = directory.cell(CELLS[0].id)
    records.write_json(cell.config, read(cell.config) | {"train": {"other": 1}})
    directory.grid_json.write_text(json.dumps(read(directory.grid_json) | {"format": 2}))
    with pytest.raises(UserError, match="was not written by this version"):
        directory.write_grid("grid", BASE, CELLS)


def read(path: Path) -> dict:
    return json.loads(path.read_text())
