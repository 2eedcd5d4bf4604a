"""A sweep directory survives a crash at any moment and two commands at once; what is none is named, with a way out."""

import json

import pytest

from smallbatch import config as configs
from smallbatch import records
from smallbatch.errors import UserError
from smallbatch.grid.axes import axis
from smallbatch.grid.cells import Cell, enumerate_cells
from smallbatch.grid.directory import SweepDirectory

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
    read = records.read_json

    def too_late(path):
        path.unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(records, "read_json", too_late)
    assert directory.state("a").status == "missing"


def test_what_is_no_sweep_of_this_version_is_told_with_the_way_out(tmp_path):
    directory = SweepDirectory(tmp_path)
    with pytest.raises(UserError, match=r"it has no grid.json; name one by --workdir"):
        directory.read_grid()
    directory.write_grid("grid", BASE, CELLS)
    asked = records.read_json(directory.grid_json)
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
