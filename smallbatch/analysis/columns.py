"""CSV and Parquet files of other trainers, read into the run table by named columns.

One idea: a row is a run. What a column means is said with --columns, never guessed: only columns that already have one
of our names are taken without being named. A column that is not used must not tell two runs of one point apart: it
could be a hyperparameter, and they would be taken for repetitions.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from smallbatch import paths
from smallbatch.analysis.learning_rates import LEARNING_RATE
from smallbatch.analysis.sheets import key_text, value_text
from smallbatch.analysis.table import Run, RunTable, without_duplicates
from smallbatch.errors import UserError, did_you_mean

NEEDED = ("batch_size", "loss_nats")
NUMBERS = ("tokens", "flops", "steps", "secs", "tokens_per_sec", "peak_memory_bytes", "params", "learning_rate")
OPTIONAL = ("setting", "arm", "seed", "status", *NUMBERS)
# Hyperparameters that need no naming, also written as our configs do: optimizer.peak_lr.
HYPERPARAMETERS = (
    *("peak_lr", "b1", "b2", "t1_tokens", "t2_tokens", "eps", "weight_decay", "clip_norm", "embed_lr"),
    *("warmup_frac", "warmup_tokens", "decay_frac", "final_lr_frac"),
)
# What other trainers and tracking services call the same thing.
STATUS_WORDS = {
    **dict.fromkeys(("done", "finished", "completed", "success"), "done"),
    **dict.fromkeys(("diverged", "nan"), "diverged"),
    **dict.fromkeys(("failed", "crashed", "error"), "failed"),
    **dict.fromkeys(("missing", "running", "pending", "killed", "preempted", "stopped"), "missing"),
    "cut": "cut",
    "skipped": "skipped",
}


@dataclass(frozen=True)
class Columns:
    """What the columns of a file are."""

    named: dict[str, str]  # our name: column
    hyperparameters: tuple[str, ...]
    left_out: tuple[str, ...]  # said to tell nothing

    def unused(self, found: list[str]) -> list[str]:
        used = {*self.named.values(), *self.hyperparameters, *self.left_out}
        return [column for column in found if column not in used]


def parse(text: str) -> Columns:
    """Return what 'batch_size=bs,loss_nats=eval_loss,peak_lr,-run_id' says."""
    named: dict[str, str] = {}
    hyperparameters, left_out = [], []
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, equals, column = (part.strip() for part in word.partition("="))
        if not equals:
            (left_out if name.startswith("-") else hyperparameters).append(name.removeprefix("-"))
        elif name not in (*NEEDED, *OPTIONAL):
            raise UserError(
                f"--columns={word}: there is no {name!r}{did_you_mean(name, (*NEEDED, *OPTIONAL))}; names are "
                f"{', '.join((*NEEDED, *OPTIONAL))}; a hyperparameter's column is written without ="
            )
        else:
            named[name] = column
    return Columns(named, tuple(hyperparameters), tuple(left_out))


def read(path: Path, columns: str) -> RunTable:
    """Return the run table of a file. Raises UserError for a column or a value that cannot be."""
    found, values = _load(path)
    said = _understood(path, found, parse(columns))
    if not values:
        raise UserError(f"{path} has no rows; there is nothing to report")
    rows = [dict(zip(found, row, strict=True)) for row in values]
    runs = [_run(path, number, row, said) for number, row in enumerate(rows, 1)]
    runs = _with_learning_rates(runs)
    _check_repetitions(path, rows, runs, said.unused(found))
    if "seed" not in said.named:
        runs = _numbered(runs)
    kept, notes = without_duplicates(runs)
    unused = [*said.unused(found), *said.left_out]
    if unused:
        notes.append(f"columns of {path.name} that were not used: {', '.join(unused)}")
    statuses = dict(Counter(run.status for run in kept))
    seeds = sorted({run.seed for run in kept}) if "seed" in said.named else []
    provenance = {"name": path.stem, "file": str(path), "rows": len(rows), "statuses": statuses, "seeds": seeds,
                  "columns": {**said.named, **{name: name for name in said.hyperparameters}}}  # fmt: skip
    return RunTable(tuple(kept), tuple(notes), (provenance,))


def _understood(path: Path, found: list[str], said: Columns) -> Columns:
    """Return the columns with those that have our names, after a look at whether all are there."""
    named, hyperparameters = dict(said.named), list(said.hyperparameters)
    taken = {*named.values(), *hyperparameters, *said.left_out}
    for column in found:
        if column in taken:
            continue
        if column in (*NEEDED, *OPTIONAL) and column not in named:
            named[column] = column
        elif key_text(column) in HYPERPARAMETERS:
            hyperparameters.append(column)
    for name in NEEDED:
        if name not in named:
            raise UserError(f"{path} has no column {name}; say which it is with --columns={name}=COLUMN{_list(found)}")
    for column in (*named.values(), *hyperparameters, *said.left_out):
        if column not in found:
            raise UserError(f"{path} has no column {column!r}{did_you_mean(column, found)}{_list(found)}")
    return Columns(named, tuple(hyperparameters), said.left_out)


def _with_learning_rates(runs: list[Run]) -> list[Run]:
    """Make the learning rate a hyperparameter where runs that agree in everything else differ in it."""
    rate = lambda run: None if math.isnan(run.learning_rate) else run.learning_rate
    rates: dict[tuple, set[float | None]] = defaultdict(set)
    for run in runs:
        rates[_where(run)].add(rate(run))
    if all(len(found) == 1 for found in rates.values()):
        return runs
    return [replace(run, point=tuple(sorted((*run.point, (LEARNING_RATE, rate(run)))))) for run in runs]


def _check_repetitions(path: Path, rows: list[dict], runs: list[Run], unused: list[str]) -> None:
    """Raise UserError if runs that would count as repetitions of one point differ in a column that is not used."""
    first: dict[tuple, int] = {}
    for i, run in enumerate(runs):
        j = first.setdefault(_where(run), i)
        if differing := [column for column in unused if str(rows[i][column]) != str(rows[j][column])]:
            raise UserError(
                f"{path}, rows {j + 1} and {i + 1} agree in batch size, arm and hyperparameters, and differ in columns "
                f"that nobody named: {', '.join(differing)}. Are they repetitions? Add to --columns what is a "
                f"hyperparameter ({differing[0]}), and with a minus what tells nothing ({_minus(differing)})"
            )


def _minus(columns: list[str]) -> str:
    return ",".join(f"-{column}" for column in columns)


def _numbered(runs: list[Run]) -> list[Run]:
    """Number the runs of each point, in the place of a seed."""
    repeats: Counter[tuple] = Counter()
    numbered = []
    for run in runs:
        numbered.append(replace(run, seed=repeats[_where(run)]))
        repeats[_where(run)] += 1
    return numbered


def _where(run: Run) -> tuple:
    return run.setting, run.arm, run.batch_size, run.point


def _load(path: Path) -> tuple[list[str], list[tuple]]:
    """Return the column names and rows of a CSV (lines that start with # are comments) or Parquet file."""
    import duckdb

    if not paths.is_file(path):
        raise UserError(f"there is no file {path}; --csv takes a CSV or Parquet file")
    reader = "read_parquet(?)" if path.suffix == ".parquet" else "read_csv(?, header=true, comment='#')"
    try:
        with duckdb.connect() as connection:
            cursor = connection.execute(f"select * from {reader}", [str(path)])
            return [column[0] for column in cursor.description or []], cursor.fetchall()
    except duckdb.Error as error:
        first = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"cannot read {path}: {first}; it takes a CSV with a header line, or Parquet") from error


def _run(path: Path, number: int, row: dict[str, Any], said: Columns) -> Run:
    named = said.named
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
    is_rate = {column: key_text(column) == key_text(LEARNING_RATE) for column in said.hyperparameters}
    point = tuple(sorted((LEARNING_RATE if is_rate[name] else name, row[name]) for name in said.hyperparameters))
    for column in (name for name in said.hyperparameters if is_rate[name] and "learning_rate" not in named):
        numbers["learning_rate"] = _number(row[column], path, number, column)
    seed = 0 if value("seed") is None else value("seed")
    if not isinstance(seed, int):
        raise UserError(f"{path}, row {number}: {named['seed']} is {seed!r}, not a whole number")
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
