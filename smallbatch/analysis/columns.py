"""CSV and Parquet files of other trainers, read into the run table by named columns.

One idea: a row is a run. What a column means is said with --columns, never guessed: only columns that already have one
of our names are taken without being named, and those that are not used are listed.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from smallbatch.analysis.sheets import value_text
from smallbatch.analysis.table import Run, RunTable, without_duplicates
from smallbatch.errors import UserError, did_you_mean

NEEDED = ("batch_size", "loss_nats")
NUMBERS = ("tokens", "flops", "steps", "secs", "tokens_per_sec", "peak_memory_bytes", "params", "learning_rate")
OPTIONAL = ("setting", "arm", "seed", "status", *NUMBERS)
# What other trainers and tracking services call the same thing.
STATUS_WORDS = {
    **dict.fromkeys(("done", "finished", "completed", "success"), "done"),
    **dict.fromkeys(("diverged", "nan"), "diverged"),
    **dict.fromkeys(("failed", "crashed", "error"), "failed"),
    **dict.fromkeys(("missing", "running", "pending", "killed", "preempted"), "missing"),
    "cut": "cut",
    "skipped": "skipped",
}


def parse(text: str) -> tuple[dict[str, str], list[str]]:
    """Return ({our name: column}, [hyperparameter columns]) from 'batch_size=bs,loss_nats=eval_loss,peak_lr'."""
    named: dict[str, str] = {}
    hyperparameters: list[str] = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, equals, column = (part.strip() for part in word.partition("="))
        if not equals:
            hyperparameters.append(name)
        elif name not in (*NEEDED, *OPTIONAL):
            raise UserError(
                f"--columns={word}: there is no {name!r}{did_you_mean(name, (*NEEDED, *OPTIONAL))}; names are "
                f"{', '.join((*NEEDED, *OPTIONAL))}; a hyperparameter's column is written without ="
            )
        else:
            named[name] = column
    return named, hyperparameters


def read(path: Path, columns: str) -> RunTable:
    """Return the run table of a file. Raises UserError for a column or a value that cannot be."""
    found, rows = _load(path)
    named, hyperparameters = parse(columns)
    for name in (*NEEDED, *OPTIONAL):
        if name in found and name not in hyperparameters:
            named.setdefault(name, name)
    for name in NEEDED:
        if name not in named:
            raise UserError(f"{path} has no column {name}; say which it is with --columns={name}=COLUMN{_list(found)}")
    for column in (*named.values(), *hyperparameters):
        if column not in found:
            raise UserError(f"{path} has no column {column!r}{did_you_mean(column, found)}{_list(found)}")
    if not rows:
        raise UserError(f"{path} has no rows; there is nothing to report")
    repeats: Counter[tuple] = Counter()
    runs = [
        _run(path, number, dict(zip(found, row, strict=True)), named, hyperparameters, repeats)
        for number, row in enumerate(rows, 1)
    ]
    kept, notes = without_duplicates(runs)
    unused = [column for column in found if column not in named.values() and column not in hyperparameters]
    if unused:
        notes.append(f"columns of {path.name} that were not used: {', '.join(unused)}")
    statuses = dict(Counter(run.status for run in kept))
    seeds = sorted({run.seed for run in kept}) if "seed" in named else []
    provenance = {"name": path.stem, "file": str(path), "rows": len(rows), "statuses": statuses, "seeds": seeds,
                  "columns": {**named, **{name: name for name in hyperparameters}}}  # fmt: skip
    return RunTable(tuple(kept), tuple(notes), (provenance,))


def _load(path: Path) -> tuple[list[str], list[tuple]]:
    """Return the column names and rows of a CSV (lines that start with # are comments) or Parquet file."""
    import duckdb

    if not path.is_file():
        raise UserError(f"there is no file {path}; --csv takes a CSV or Parquet file")
    reader = "read_parquet(?)" if path.suffix == ".parquet" else "read_csv(?, header=true, comment='#')"
    try:
        with duckdb.connect() as connection:
            cursor = connection.execute(f"select * from {reader}", [str(path)])
            return [column[0] for column in cursor.description or []], cursor.fetchall()
    except duckdb.Error as error:
        first = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"cannot read {path}: {first}; it takes a CSV with a header line, or Parquet") from error


def _run(
    path: Path, number: int, row: dict[str, Any], named: dict[str, str], hyperparameters: list[str], repeats: Counter
) -> Run:
    value = lambda name: row[named[name]] if name in named else None
    numbers: dict[str, Any] = {
        name: _number(value(name), path, number, named[name]) for name in named if name in NUMBERS
    }
    batch_size = _number(value("batch_size"), path, number, named["batch_size"])
    if not (batch_size > 0 and math.isfinite(batch_size)):
        raise UserError(f"{path}, row {number}: {named['batch_size']} is {value('batch_size')!r}, not a batch size")
    status, loss = _outcome(path, number, value("status"), value("loss_nats"), named)
    setting = path.stem if value("setting") is None else value_text("setting", value("setting"))
    arm = "all runs" if value("arm") is None else str(value("arm"))
    point = tuple(sorted((name, row[name]) for name in hyperparameters))
    where = (setting, arm, batch_size, point)
    seed = value("seed")
    if seed is None:
        seed = repeats[where]
    elif not isinstance(seed, int):
        raise UserError(f"{path}, row {number}: {named['seed']} is {seed!r}, not a whole number")
    repeats[where] += 1
    return Run(setting=setting, arm=arm, batch_size=batch_size, seed=seed, point=point, status=status, loss_nats=loss,
               source=f"{path.name}, row {number}", **numbers)  # fmt: skip


def _outcome(path: Path, number: int, status: Any, loss: Any, named: dict[str, str]) -> tuple[str, float]:
    """Return (status, loss): without a status column a loss that is no number is a divergence, an empty one missing."""
    loss_nats = _number(loss, path, number, named["loss_nats"])
    if status is None:
        word = "missing" if loss is None else "done" if math.isfinite(loss_nats) else "diverged"
    else:
        word = STATUS_WORDS.get(str(status).strip().lower(), "")
        if not word:
            raise UserError(
                f"{path}, row {number}: status is {status!r}; it takes {', '.join(STATUS_WORDS)}"
            )  # fmt: skip
        if word == "done" and not math.isfinite(loss_nats):
            word = "missing" if loss is None else "diverged"
    return word, {"done": loss_nats, "diverged": math.inf}.get(word, np.nan)


def _number(value: Any, path: Path, number: int, column: str) -> float:
    if value is None:
        return np.nan
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}, row {number}: {column} is {value!r}, not a number") from error


def _list(found: list[str]) -> str:
    return f"; it has {', '.join(found)}"
