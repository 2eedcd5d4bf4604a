"""The sweep directory, the only truth about a sweep: what was asked for, what has come out, what is under way.

grid.json      what was asked for: base config, swept keys, cells         cells/ID/    a run directory each, and log.txt
results.csv    one row a cell, written anew as cells end                  claims/ID    who is at work on it
worker-*.txt   what a worker process said outside its cells, if anything
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from smallbatch import config as configs
from smallbatch import records
from smallbatch.errors import UserError
from smallbatch.escaping import csv_text
from smallbatch.grid.axes import Grid
from smallbatch.grid.cells import Cell, enumerate_cells
from smallbatch.grid.claims import Claims
from smallbatch.training.workdir import Workdir

FORMAT = 1
RESULTS = ("done", "diverged")
MARKS = ("cut", "skipped", "failed")  # why there is no result: early stopping, a diverged rival, an error


@dataclasses.dataclass(frozen=True)
class State:
    """How far a cell is."""

    status: str  # one of RESULTS or MARKS, or missing: not run, or under way
    validation_loss_nats: float | None = None
    tokens: int | None = None
    flops: float | None = None
    secs: float | None = None
    error: str | None = None  # of a failed cell


class SweepDirectory:
    """Paths, states and the table of a sweep."""

    def __init__(self, path: Path):
        self.path = path
        self.grid_json = path / "grid.json"
        self.results_csv = path / "results.csv"

    @property
    def claims(self) -> Claims:
        return Claims(self.path / "claims")

    def cell(self, cell_id: str) -> Workdir:
        """Return the run directory of a cell."""
        return Workdir(self.path / "cells" / cell_id)

    def log(self, cell_id: str) -> Path:
        """Return the file that has what a cell's run said."""
        return self.cell(cell_id).path / "log.txt"

    def worker_log(self, name: str) -> Path:
        """Return the file that has what a worker process said outside its cells."""
        return self.path / f"worker-{name}.txt"

    def write_grid(self, name: str, base: configs.Config, cells: list[Cell]) -> int:
        """Write down what is asked for; return how many cells of an earlier grid here are not part of it any more.

        Raises UserError if the directory cannot be written or holds something else.
        """
        asked = {cell.id for cell in cells}
        left = len([cell for cell in self.read_grid() if cell.id not in asked]) if self.grid_json.exists() else 0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            strange = [path for path in self.path.iterdir() if not path.name.startswith(".")]  # as a crash leaves them
        except OSError as error:
            raise UserError(f"cannot write in {self.path}: {error.strerror}; choose another --workdir") from error
        if strange and not self.grid_json.exists():
            raise UserError(f"{self.path} is not empty and holds no sweep; choose another --workdir")
        described = {
            "format": FORMAT,
            "name": name,
            "swept": list(cells[0].values),
            "config": base.to_dict(),
            "cells": [{"id": cell.id, "values": cell.values} for cell in cells],
        }
        records.write_json(self.grid_json, described)
        return left

    def read_grid(self) -> list[Cell]:
        """Return the cells that were asked for. Raises UserError where there is no sweep, or one of another version."""
        if not self.grid_json.exists():
            raise UserError(
                f"{self.path} is not a sweep directory: it has no grid.json; name one by --workdir, or start one"
            )
        asked = records.read_json(self.grid_json)
        if not isinstance(asked, dict) or asked.get("format") != FORMAT:
            raise UserError(
                f"{self.grid_json} was not written by this version of smallbatch; use that one, or another --workdir"
            )
        base = configs.base()
        for section, values in asked["config"].items():
            base[section].update(config_dict.ConfigDict(values))
        grid: Grid = tuple(cell["values"] for cell in asked["cells"])
        cells = enumerate_cells(base, grid)
        if [cell.id for cell in cells] != [cell["id"] for cell in asked["cells"]]:
            raise UserError(
                f"{self.grid_json} names cells by other configs than this version of smallbatch makes; use the version "
                "that wrote it, or another --workdir"
            )
        return cells

    def state(self, cell_id: str) -> State:
        """Return how far a cell is, as its files tell."""
        workdir = self.cell(cell_id)
        result = _unless_missing(records.read_result, workdir.result)
        if result is not None and result.status in RESULTS:
            fields = {field.name for field in dataclasses.fields(State)} & vars(result).keys()
            return State(**{name: getattr(result, name) for name in fields})
        for status in MARKS:
            about = _unless_missing(records.read_json, workdir.path / f"{status}.json")
            if about is not None:
                return State(**({"status": status} | about))
        return State("missing")

    def states(self, cells: Iterable[Cell]) -> dict[str, State]:
        """Return {id: how far the cell is}."""
        return {cell.id: self.state(cell.id) for cell in cells}

    def mark(self, cell_id: str, status: str, about: dict[str, Any]) -> None:
        """Write down that a cell ended without a result."""
        self.cell(cell_id).path.mkdir(parents=True, exist_ok=True)
        records.write_json(self.cell(cell_id).path / f"{status}.json", about)

    def unmark(self, cell_id: str, *statuses: str) -> None:
        """Forget such marks, so that the cell is missing again."""
        for status in statuses:
            (self.cell(cell_id).path / f"{status}.json").unlink(missing_ok=True)

    def drop_checkpoints(self, cell_id: str) -> None:
        """Free the space that only a cell that goes on needs."""
        shutil.rmtree(self.cell(cell_id).checkpoints, ignore_errors=True)

    @staticmethod
    def rows(cells: list[Cell], states: dict[str, State]) -> list[dict[str, Any]]:
        """Return what results.csv says, a dict a cell."""
        columns = ("status", "validation_loss_nats", "tokens", "flops", "secs")
        about = lambda cell: {name: getattr(states[cell.id], name) for name in columns}
        return [{"id": cell.id, **cell.values, **about(cell)} for cell in cells]

    def write_results(self, cells: list[Cell], states: dict[str, State]) -> None:
        """Write results.csv."""
        rows = self.rows(cells, states)
        text = csv_text([rows[0], *([row.get(column) for column in rows[0]] for row in rows)])
        records.write_bytes(self.results_csv, text.encode())


def _unless_missing(read: Callable[[Path], Any], path: Path) -> Any:
    """Return what a file holds, None if there is none: asking first would not do, another sweep may delete it then."""
    try:
        return read(path)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
