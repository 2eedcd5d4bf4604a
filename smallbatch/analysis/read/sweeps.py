"""Read sweep directories and run directories into the run table.

The files in the directory of a cell determine its status; a cell without files is missing. A damaged file adds a note,
and its cell is skipped or counted as missing. Only a directory without any runs is an error.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from smallbatch.analysis.read import gradient_records, naming
from smallbatch.analysis.read.naming import Identity, Named
from smallbatch.analysis.read.run_table import Run, RunTable, without_duplicates
from smallbatch.analysis.stats import curves
from smallbatch.errors import UserError
from smallbatch.files import json_files, paths
from smallbatch.runs.records import FORMER_STATUSES, STATUSES, plan_hyperparams, read_metrics

GRID_FORMAT = 1
MAX_LISTED = 3  # run directories in the name of a setting
GRID = {"name": str, "config": {}, "cells": [{"id": str, "values": {}}]}  # the schema of grid.json
# Config keys that are read as numbers, with their types.
READ_KEYS = {
    naming.BATCH_SIZE: int,
    naming.SEED: int | None,
    naming.BUDGET: int | None,
    "optimizer.peak_lr": float | None,
    "model.context_tokens": int,
}


class NotReportable(UserError):
    """A valid grid.json that cannot be reported: another format, or no cells."""


@dataclass(frozen=True)
class CellDir:
    """One run of a sweep: its directory, which may not exist yet, and its config as {dotted key: value}."""

    directory: Path
    config: dict[str, Any]


@dataclass(frozen=True)
class SweepDir:
    """A directory of cells. `base` is the config that the cells override; None without grid.json."""

    name: str
    directory: Path
    cells: tuple[CellDir, ...]
    arm_keys: tuple[str, ...]
    base: dict[str, Any] | None


def read(paths: Sequence[Path]) -> RunTable:
    """Return the run table of sweep directories, run directories, or directories of run directories."""
    notes: Counter[str] = Counter()
    sweeps = _merge_single_runs(_with_unique_names([find(path, notes) for path in paths]))
    identities = naming.identify(
        [Named(sweep.name, [cell.config for cell in sweep.cells], sweep.arm_keys) for sweep in sweeps]
    )
    runs: list[Run] = []
    provenance: list[dict[str, Any]] = []
    used_tokens: dict[Any, set[float]] = defaultdict(set)  # {budget: tokens that its runs trained on}
    for sweep, own in zip(sweeps, identities, strict=True):
        results: list[dict[str, Any]] = []
        found = [_read_cell(cell, i, notes, results) for cell, i in zip(sweep.cells, own, strict=True)]
        runs += found
        for cell, run in zip(sweep.cells, found, strict=True):
            if run.status == "done" and np.isfinite(run.tokens):
                used_tokens[cell.config.get(naming.BUDGET)].add(run.tokens)
        provenance.append(_provenance(sweep, found, results))
    for budget, used in used_tokens.items():
        if isinstance(budget, int) and len(used) > 1:
            notes[
                f"runs with a budget of {budget:,} tokens trained on {min(used):,.0f} to {max(used):,.0f}, because it "
                "is rounded up to whole updates; their losses are not at equal tokens"
            ] += 1
    kept, dropped = without_duplicates(runs)
    counted = [text if count == 1 else f"{text} ({count} times)" for text, count in notes.items()]
    return RunTable(tuple(kept), (*counted, *dropped), tuple(provenance))


def find(path: Path, notes: Counter[str]) -> SweepDir:
    """Return the cells of a directory. Raises UserError if it contains neither a sweep nor a run."""
    if not paths.is_dir(path):
        raise UserError(f"there is no directory {path}; give a sweep directory, a run directory or a folder of runs")
    name = paths.resolved(path).name
    if paths.exists(path / "grid.json") or paths.is_dir(path / "cells"):
        try:
            return _sweep_directory(path)
        except UserError as error:
            if isinstance(error, NotReportable) or not (cells := _run_directories(path / "cells", notes)):
                raise
            notes[f"{error}; the report includes only the {len(cells)} cells that were started"] += 1
            return SweepDir(name, path, tuple(cells), (), None)
    if paths.exists(path / "config.json"):
        return SweepDir(name, path, (_run_directory(path),), (), None)
    cells = _run_directories(path, notes)
    if not cells:
        raise UserError(
            f"{path} contains no sweep (grid.json) and no runs (config.json, result.json); "
            "give a directory that `smallbatch.sweep` or `smallbatch.train` wrote"
        )
    return SweepDir(name, path, tuple(cells), (), None)


def _run_directories(path: Path, notes: Counter[str]) -> list[CellDir]:
    """Return the run directories in a directory; skip one with a damaged config.json, with a note."""
    cells = []
    for directory in (entry for entry in paths.entries(path) if paths.exists(entry / "config.json")):
        try:
            cells.append(_run_directory(directory))
        except UserError as error:
            notes[f"{error}; the run is ignored"] += 1
    return cells


def _run_directory(path: Path) -> CellDir:
    config = naming.flatten(json_files.read_config(path / "config.json"))
    _check_read_keys(config, path / "config.json")
    return CellDir(path, config)


def _check_read_keys(config: dict[str, Any], file: Path) -> None:
    """Raise UserError if a key that must be a number has another type."""
    if problem := json_files.mismatch(config, {key: kind for key, kind in READ_KEYS.items() if key in config}):
        raise UserError(f"{file} is damaged ({problem}); restore it from a copy")


def _sweep_directory(path: Path) -> SweepDir:
    file = path / "grid.json"
    grid = json_files.read_object(file, {"format": int}, "the grid of a sweep")
    if grid["format"] != GRID_FORMAT:
        raise NotReportable(
            f"{file} has format {grid['format']!r}, but this version reads format {GRID_FORMAT}; use the version of "
            "smallbatch that wrote it"
        )
    if problem := json_files.mismatch(grid, GRID):
        raise UserError(f"{file} is damaged ({problem}); restore it from a copy")
    base, arms = naming.flatten(grid["config"]), grid.get("arms") or []
    if json_files.mismatch(arms, [str] if isinstance(arms, list) else str):
        raise UserError(f"{file} is damaged (arms is {arms!r}, not a key or a list of keys); restore it from a copy")
    cells = tuple(CellDir(path / "cells" / cell["id"], {**base, **cell["values"]}) for cell in grid["cells"])
    for cell in cells:
        _check_read_keys(cell.config, file)
    if not cells:
        raise NotReportable(f"{file} has no cells; give the directory of a sweep with at least one cell")
    return SweepDir(grid["name"], path, cells, (arms,) if isinstance(arms, str) else tuple(arms), grid["config"])


def _with_unique_names(sweeps: list[SweepDir]) -> list[SweepDir]:
    """Use the directory as the name of each sweep whose name occurs twice, so that each remains its own setting."""
    directories = [paths.resolved(sweep.directory) for sweep in sweeps]
    if repeated := [directory for directory, times in Counter(directories).items() if times > 1]:
        raise UserError(f"the directory {repeated[0]} is given twice; give it once")
    times = Counter(sweep.name for sweep in sweeps)
    return [sweep if times[sweep.name] == 1 else replace(sweep, name=str(sweep.directory)) for sweep in sweeps]


def _merge_single_runs(sweeps: list[SweepDir]) -> list[SweepDir]:
    """Combine run directories that were given separately into one setting, as if their parent had been given."""
    runs = [sweep for sweep in sweeps if len(sweep.cells) == 1 and sweep.cells[0].directory == sweep.directory]
    if len(runs) < 2:
        return sweeps
    names = [run.name for run in runs]
    name = ", ".join(names[:MAX_LISTED]) + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")
    parent = Path(os.path.commonpath([run.directory.resolve() for run in runs]))
    merged = SweepDir(name, parent, tuple(run.cells[0] for run in runs), (), None)
    return [*(sweep for sweep in sweeps if sweep not in runs), merged]


def _read_cell(cell: CellDir, identity: Identity, notes: Counter[str], results: list[dict[str, Any]]) -> Run:
    """Return the run of a cell. A cell whose outcome cannot be read gets a note and is missing."""
    directory, config = cell.directory, cell.config
    try:
        status, loss, result = _outcome(directory)
    except UserError as error:
        status, loss, result = "missing", np.nan, {}
        notes[f"{error}; counted as missing"] += 1
    extra: dict[str, Any] = {}
    if result:
        results.append(result)
        extra = _curves_and_plan(directory, _number(config.get("model.context_tokens")), notes)
    return Run(
        setting=identity.setting,
        arm=identity.arm,
        point=identity.point,
        batch_size=_number(config.get(naming.BATCH_SIZE)),
        seed=int(config.get(naming.SEED) or 0),
        status=status,
        loss_nats=loss,
        average_loss_nats=_number(result.get("average_validation_loss_nats")),
        learning_rate=extra.pop("peak_lr", _number(config.get("optimizer.peak_lr"))),
        tokens=_number(result.get("tokens")),
        flops=_number(result.get("flops")),
        steps=_number(result.get("optimizer_steps")),
        secs=_number(result.get("secs")),
        tokens_per_sec=_number(result.get("tokens_per_sec")),
        program_memory_bytes=_number(result.get("program_memory_bytes")),
        params=_number(result.get("params")),
        context_tokens=_number(config.get("model.context_tokens")),
        source=str(directory),
        failure_file=str(directory / "failed.json") if status == "failed" else "",
        validation_loss_se_nats=_number(result.get("validation_loss_se_nats")),
        **extra,
    )


def _outcome(directory: Path) -> tuple[str, float, dict[str, Any]]:
    """Return (status, loss, result.json) of a run directory; the result is {} unless the run is done or diverged.

    The keys are checked one by one. records.read_result would reject the results of earlier versions.
    """
    file = directory / "result.json"
    if paths.exists(file):
        result = json_files.read_object(file, {"status": str}, "the result of a run")
        if result["status"] not in (*STATUSES, *FORMER_STATUSES):
            raise UserError(
                f"{file} is damaged (status is {result['status']!r}, not {' or '.join(STATUSES)}); "
                "restore it from a copy"
            )
        nested = {key: {} for key in ("versions", "device") if result.get(key) is not None}
        if problem := json_files.mismatch(result, nested):
            raise UserError(f"{file} is damaged ({problem}); restore it from a copy")
        if result["status"] in ("done", "diverged"):  # a stopped run may still be resumed or cut
            loss = _number(result.get("validation_loss_nats"))
            diverged = result["status"] == "diverged" or not np.isfinite(loss)  # a non-finite loss is written as null
            return ("diverged", np.inf, result) if diverged else ("done", loss, result)
    if paths.exists(directory / "cut.json"):
        cut = json_files.read_object(directory / "cut.json", {"validation_loss_nats": float | None}, "a cut cell")
        return "cut", _number(cut["validation_loss_nats"]), {}
    if paths.exists(directory / "skipped.json"):
        return "skipped", np.inf, {}
    return ("failed" if paths.exists(directory / "failed.json") else "missing"), np.nan, {}


def _curves_and_plan(directory: Path, context_tokens: float, notes: Counter[str]) -> dict[str, Any]:
    """Return the curves of a run, its gradient records, and its learning rate after transfer rules."""
    found: dict[str, Any] = {}
    try:
        records = read_metrics(directory / "metrics.jsonl")
        train = [record for record in records if record["kind"] == "train"]
        if train:
            found["training"] = curves.training_curve(train)
            found["gradients"] = gradient_records.second_half(train, context_tokens)
            validations = [record for record in records if record["kind"] == "validation"]
            if validations:
                found["validation"] = curves.validation_curve(validations, found["training"])
        with (directory / "metrics.jsonl").open("rb") as file:
            if file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                notes["a metrics.jsonl ends in an incomplete line, which is ignored"] += 1
    except UserError as error:
        notes[f"{error}; the curve of this run is ignored"] += 1
    try:
        plan = json_files.read_object(directory / "plan.json", {}, "the plan of a run")
        optimizer = plan.get("optimizer")
        if found.get("gradients") and isinstance(optimizer, dict) and optimizer.get("diagnostics") == "successive":
            found["gradients"][gradient_records.SUCCESSIVE] = 1.0
        found["peak_lr"] = _number(plan_hyperparams(plan, directory / "plan.json").get("peak_lr"))
    except UserError as error:
        notes[f"{error}; the learning rate is the value in the config, without transfer rules"] += 1
    return found


def _provenance(sweep: SweepDir, runs: list[Run], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the provenance of the runs: versions, code, data, devices, seeds, statuses, the base config."""
    versions: dict[str, set[str]] = {}
    for result in results:
        for package, version in (result.get("versions") or {}).items():
            versions.setdefault(package, set()).add(str(version))

    def distinct(key: str) -> list[str]:
        return sorted({str(result[key]) for result in results if result.get(key) is not None})

    devices = {" ".join(map(str, (result.get("device") or {}).values())) for result in results}
    return {
        "name": sweep.name,
        "directory": str(sweep.directory),
        "cells": len(runs),
        "statuses": dict(Counter(run.status for run in runs)),
        "seeds": sorted({run.seed for run in runs}),
        "versions": {package: sorted(found) for package, found in sorted(versions.items())},
        "code": distinct("git_sha"),
        "code_with_local_changes": sum(bool(result.get("git_dirty")) for result in results),
        "datasets": distinct("dataset_sha256"),
        "devices": sorted(devices),
        "fingerprints": distinct("fingerprint"),
        "finished": [times[0], times[-1]] if (times := distinct("finished")) else [],
        "config": sweep.base,
    }


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return np.nan
    return float(value)
