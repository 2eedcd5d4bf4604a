"""The sweep directory, the only truth about a sweep: what was asked for, what has come out, what is under way.

grid.json      what was asked for: base config, swept keys, cells         cells/ID/    a run directory each, and log.txt
results.csv    one row a cell, written anew as cells end                  claims/ID    who is at work on it
worker-*.txt   what a worker process said outside its cells, if anything
"""

import contextlib
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
from smallbatch.grid.cells import ID_LENGTH, Cell, enumerate_cells
from smallbatch.runs import records
from smallbatch.runs.escaping import csv_text
from smallbatch.runs.progress import log
from smallbatch.runs.run_dir import RunDir

FORMAT = 1
RESULTS = ("done", "diverged")
# {status: shape of CELL/STATUS.json} for cells without a result (early stopping, a diverged sibling, an error).
MARKS: dict[str, dict[str, Any]] = {
    "cut": {"tokens": int, "validation_loss_nats": float | None},
    "skipped": {"error": str},
    "failed": {"error": str},
}
GRID = {"name": str, "config": {}, "cells": [{"id": str, "values": {}}]}  # the shape of grid.json
REWRITE_GRID = "rerun the sweep with its --config, which rewrites grid.json and keeps all results"


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
    def claims(self) -> CellLocks:
        return CellLocks(self.path / "claims")

    def cell(self, cell_id: str) -> RunDir:
        """Return the run directory of a cell."""
        return RunDir(self.path / "cells" / cell_id)

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
        left, problem = self._compare(cells)
        if problem:
            log(f"{problem}; rewriting it now (the {len(self._started())} cells that were started are kept)")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write in {self.path}: {error.strerror}; choose another --workdir") from error
        described = {
            "format": FORMAT,
            "name": name,
            "swept": list(cells[0].values),
            "config": configs.resolved(base),
            "cells": [{"id": cell.id, "values": cell.values} for cell in cells],
        }
        records.write_json(self.grid_json, described)
        return left

    def check_grid(self, cells: list[Cell]) -> int:
        """Return how many cells of an earlier grid here are not among these. Writes nothing.

        Raises UserError if the directory is not writable, contains something other than a sweep, or may have been
        written by another version of smallbatch.
        """
        return self._compare(cells)[0]

    def _compare(self, cells: list[Cell]) -> tuple[int, str]:
        """Return what `check_grid` does, and what is wrong with grid.json ("" if nothing is)."""
        paths.check_writable(self.path, "choose another --workdir")
        if not paths.exists(self.grid_json) and not self.begun_cells():
            if any(not path.name.startswith(".") for path in paths.entries(self.path)):  # remnants of a crash
                raise UserError(f"{self.path} is not empty and holds no sweep; choose another --workdir")
            return 0, ""
        earlier, problem = self._earlier_cells()
        return len(earlier - {cell.id for cell in cells}), problem

    def _earlier_cells(self) -> tuple[set[str], str]:
        """Return the ids in grid.json and its problem, "" if it is valid or missing.

        If it is missing or damaged, the ids are those of the cells that were started. Raises UserError if another
        version of smallbatch may have written the sweep.
        """
        if not paths.exists(self.grid_json):
            return self._started(), ""
        try:
            return {cell.id for cell in self.read_grid()}, ""
        except UserError as error:
            started = self._started()
            if started != {cell.id for cell in self.begun_cells()}:
                raise
            return started, str(error)

    def _started(self) -> set[str]:
        """Return the ids of the cells that were started, from their directories."""
        return {path.parent.name for path in self.path.glob("cells/*/config.json")}

    def begun_cells(self) -> list[Cell]:
        """Return the cells that were started, read from their configs; cells of other versions are skipped."""
        flats = {}
        for cell_id in sorted(self._started()):
            with contextlib.suppress(UserError):
                saved = json_files.read_config(self.cell(cell_id).config)
                flat = configs.flatten(configs.from_sections(saved).to_dict())
                if configs.fingerprint_flat(flat)[:ID_LENGTH] == cell_id:
                    flats[cell_id] = flat
        varied = [key for key in configs.KEY_BY_NAME if len({repr(flat[key]) for flat in flats.values()}) > 1]
        return [Cell(cell_id, {key: flat[key] for key in varied}, flat) for cell_id, flat in flats.items()]

    def saved_grid(self) -> tuple[str, Grid]:
        """Return the name of the sweep and its grid. Raises UserError if there is no sweep."""
        grid: Grid = tuple(cell.values for cell in self.read_grid())
        return str(json_files.read_object(self.grid_json, {}, "the grid of a sweep").get("name", self.path.name)), grid

    def check_config(self, config: configs.Config) -> None:
        """Raise UserError, with the keys, if `config` differs from the config of the first cell of the sweep."""
        if differing := configs.differences(self.read_grid()[0].config.to_dict(), config.to_dict()):
            raise UserError(
                f"{self.path} holds a sweep of another config ({'; '.join(differing)}: saved | given); resume it "
                "with --workdir alone, or give --config and another --workdir for a new sweep"
            )

    def read_grid(self) -> list[Cell]:
        """Return the cells that were asked for. Raises UserError where there is no sweep, or one of another version."""
        if not paths.exists(self.grid_json):
            raise UserError(
                f"{self.path} is not a sweep directory: it has no grid.json; name one by --workdir, or start one"
            )
        asked = json_files.read_object(self.grid_json, {"format": int}, "the grid of a sweep", REWRITE_GRID)
        if asked["format"] != FORMAT:
            raise UserError(
                f"{self.grid_json} was not written by this version of smallbatch; use that one, or another --workdir"
            )
        if problem := json_files.mismatch(asked, GRID):
            raise UserError(f"{self.grid_json} is damaged ({problem}); {REWRITE_GRID}")
        try:
            cells = enumerate_cells(
                configs.from_sections(asked["config"]), tuple(cell["values"] for cell in asked["cells"])
            )
        except UserError as error:
            raise UserError(
                f"{self.grid_json} is damaged, or from another version of smallbatch ({error}); {REWRITE_GRID}"
            ) from error
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
        for status, shape in MARKS.items():
            about = _unless_missing(functools.partial(_read_mark, shape=shape), workdir.path / f"{status}.json")
            if about is not None:
                return State(status, **about)
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


def _read_mark(path: Path, shape: dict[str, Any]) -> dict[str, Any]:
    """Return the content of CELL/STATUS.json; keys may be missing. Raises UserError for values of another shape."""
    fix = "delete it to run the cell again"
    about = json_files.read_object(path, {}, f"the record of a {path.stem} cell", fix)
    known = {name: value for name, value in about.items() if name in shape}
    if problem := json_files.mismatch(known, {name: shape[name] for name in known}):
        raise UserError(f"{path} is damaged ({problem}); {fix}")
    return known


def _unless_missing(read: Callable[[Path], Any], path: Path) -> Any:
    """Return what a file holds, None if there is none: asking first would not do, another sweep may delete it then."""
    try:
        return read(path)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
