"""The sweep directory, which holds the whole state of a sweep.

grid.json      base config, swept keys and cells          cells/ID/   a run directory per cell, and its log.txt
results.csv    one row per cell, rewritten as cells end    locks/ID    the process that runs the cell
worker-*.txt   output of a worker process outside its cells, if any
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from smallbatch import config as configs
from smallbatch.errors import UserError
from smallbatch.files import json_files, paths
from smallbatch.grid.axes import Grid
from smallbatch.grid.cell_locks import CellLocks
from smallbatch.grid.cells import Cell, enumerate_cells
from smallbatch.runs import records
from smallbatch.runs.escaping import csv_text
from smallbatch.runs.run_dir import RunDir

FORMAT = 1
RESULTS = ("done", "diverged")
# {status: schema of CELL/STATUS.json}, for cells that ended without a result.
MARKS: dict[str, dict[str, Any]] = {
    "cut": {"tokens": int, "validation_loss_nats": float | None},
    "skipped": {"error": str},
    "failed": {"error": str},
}
GRID = {"format": int, "name": str, "config": {}, "cells": [{"id": str, "values": {}}]}  # the schema of grid.json
REWRITE_GRID = "delete it and rerun the sweep with its --config, which rewrites it and keeps all results"


@dataclasses.dataclass(frozen=True)
class State:
    """The status and results of a cell."""

    status: str  # one of RESULTS or MARKS; or missing: not started, or not finished
    validation_loss_nats: float | None = None
    tokens: int | None = None
    flops: float | None = None
    secs: float | None = None
    error: str | None = None  # of a failed or skipped cell


class SweepDirectory:
    """The paths, cell states and result table of a sweep."""

    def __init__(self, path: Path):
        self.path = path
        self.grid_json = path / "grid.json"
        self.results_csv = path / "results.csv"
        self.locks = CellLocks(path / "locks")

    def cell(self, cell_id: str) -> RunDir:
        """Return the run directory of a cell."""
        return RunDir(self.path / "cells" / cell_id)

    def log(self, cell_id: str) -> Path:
        """Return the log file of a cell."""
        return self.cell(cell_id).path / "log.txt"

    def worker_log(self, name: str) -> Path:
        """Return the log file of a worker process."""
        return self.path / f"worker-{name}.txt"

    def check_grid(self, cells: list[Cell]) -> int:
        """Return how many cells of the earlier grid in this directory are not among `cells`. Writes nothing.

        Raises UserError if the directory is not writable, contains something other than a sweep, or was written by
        another version of smallbatch.
        """
        paths.check_writable(self.path, "choose another --workdir")
        if paths.exists(self.grid_json):
            return len({cell.id for cell in self.read_grid()} - {cell.id for cell in cells})
        others = [path for path in paths.entries(self.path) if not path.name.startswith(".")]  # hidden: left by a crash
        if others and not paths.exists(self.path / "cells"):
            raise UserError(f"{self.path} is not empty and holds no sweep; choose another --workdir")
        return 0

    def write_grid(self, name: str, base: configs.Config, cells: list[Cell]) -> int:
        """Write grid.json; return the value of `check_grid`."""
        left = self.check_grid(cells)
        self.path.mkdir(parents=True, exist_ok=True)
        described = {
            "format": FORMAT,
            "name": name,
            "swept": list(cells[0].values),
            "config": configs.resolved(base),
            "cells": [{"id": cell.id, "values": cell.values} for cell in cells],
        }
        records.write_json(self.grid_json, described)
        return left

    def saved_grid(self) -> tuple[str, Grid]:
        """Return the name of the sweep and its grid. Raises UserError if there is no sweep."""
        grid: Grid = tuple(cell.values for cell in self.read_grid())
        return json_files.read(self.grid_json)["name"], grid

    def check_config(self, config: configs.Config) -> None:
        """Raise UserError, with the keys, if `config` differs from the config of the first cell of the sweep."""
        if differing := configs.differences(self.read_grid()[0].config.to_dict(), config.to_dict()):
            raise UserError(
                f"{self.path} holds a sweep of another config ({'; '.join(differing)}: saved | given); resume it "
                "with --workdir alone, or give --config and another --workdir for a new sweep"
            )

    def read_grid(self) -> list[Cell]:
        """Return the cells in grid.json. Raises UserError if there is no sweep, or one of another version."""
        if not paths.exists(self.grid_json):
            raise UserError(
                f"{self.path} is not a sweep directory: it has no grid.json; set --workdir to one, or start a sweep"
            )
        saved = json_files.read_object(self.grid_json, GRID, "the grid of a sweep", REWRITE_GRID)
        try:
            base = configs.from_sections(saved["config"])
            cells = enumerate_cells(base, tuple(cell["values"] for cell in saved["cells"]))
        except UserError as error:
            raise UserError(
                f"{self.grid_json} is damaged, or from another version of smallbatch ({error}); {REWRITE_GRID}"
            ) from error
        if saved["format"] != FORMAT or [cell.id for cell in cells] != [cell["id"] for cell in saved["cells"]]:
            raise UserError(
                f"{self.grid_json} was written by another version of smallbatch; use that one, or another --workdir"
            )
        return cells

    def state(self, cell_id: str) -> State:
        """Return the state of a cell, read from its files."""
        workdir = self.cell(cell_id)
        result = _read_if_exists(records.read_result, workdir.result)
        if result is not None and result.status in RESULTS:
            fields = {field.name for field in dataclasses.fields(State)} & vars(result).keys()
            return State(**{name: getattr(result, name) for name in fields})
        for status, shape in MARKS.items():
            mark = _read_if_exists(functools.partial(_read_mark, shape=shape), workdir.path / f"{status}.json")
            if mark is not None:
                return State(status, **mark)
        return State("missing")

    def states(self, cells: Iterable[Cell]) -> dict[str, State]:
        """Return {cell id: state}."""
        return {cell.id: self.state(cell.id) for cell in cells}

    def mark(self, cell_id: str, status: str, content: dict[str, Any]) -> None:
        """Record that a cell ended without a result."""
        self.cell(cell_id).path.mkdir(parents=True, exist_ok=True)
        records.write_json(self.cell(cell_id).path / f"{status}.json", content)

    def unmark(self, cell_id: str, *statuses: str) -> None:
        """Delete such marks, so that the cell is missing again."""
        for status in statuses:
            (self.cell(cell_id).path / f"{status}.json").unlink(missing_ok=True)

    def delete_checkpoints(self, cell_id: str) -> None:
        """Delete the checkpoints of a cell that has ended."""
        shutil.rmtree(self.cell(cell_id).checkpoints, ignore_errors=True)

    @staticmethod
    def rows(cells: list[Cell], states: dict[str, State]) -> list[dict[str, Any]]:
        """Return the rows of results.csv, one dict per cell."""
        columns = ("status", "validation_loss_nats", "tokens", "flops", "secs")
        return [
            {"id": cell.id, **cell.values, **{name: getattr(states[cell.id], name) for name in columns}}
            for cell in cells
        ]

    def write_results(self, cells: list[Cell], states: dict[str, State]) -> None:
        """Write results.csv."""
        rows = self.rows(cells, states)
        text = csv_text([rows[0], *([row.get(column) for column in rows[0]] for row in rows)])
        records.write_bytes(self.results_csv, text.encode())


def _read_mark(path: Path, shape: dict[str, Any]) -> dict[str, Any]:
    """Return the content of CELL/STATUS.json; keys may be missing. Raises UserError if a value has another type."""
    fix = "delete it to run the cell again"
    content = json_files.read_object(path, {}, f"the record of a {path.stem} cell", fix)
    known = {name: value for name, value in content.items() if name in shape}
    if problem := json_files.mismatch(known, {name: shape[name] for name in known}):
        raise UserError(f"{path} is damaged ({problem}); {fix}")
    return known


def _read_if_exists(read: Callable[[Path], Any], path: Path) -> Any:
    """Return the content of a file, or None if it does not exist. Another sweep may delete it at any moment."""
    try:
        return read(path)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
