"""Read the run table of another trainer from a CSV or Parquet file.

Each row is a run. --columns maps columns to our names; a column that already has one of our names needs no mapping.
Runs that differ only in an unused column are an error: the column could be a hyperparameter, and the runs would be
mistaken for seeds.
"""

import csv
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from smallbatch.analysis.read import number_format, run_files
from smallbatch.analysis.read.naming import LEARNING_RATE
from smallbatch.analysis.read.number_format import UNSET, Written
from smallbatch.analysis.read.run_files import RowsFile
from smallbatch.analysis.read.run_table import Run, RunTable, without_duplicates
from smallbatch.analysis.report.tables import key_text, value_text
from smallbatch.errors import UserError, did_you_mean
from smallbatch.runs.escaping import without_apostrophes

NEEDED = ("batch_size", "loss_nats")
LOSSES = ("loss_nats", "validation_loss_se_nats")
COUNTS = ("batch_size", "seed", "tokens", "steps", "peak_memory_bytes", "program_memory_bytes", "params")
NUMBERS = (
    *("tokens", "flops", "steps", "secs", "tokens_per_sec", "peak_memory_bytes", "program_memory_bytes", "params"),
    *("learning_rate", "validation_loss_se_nats"),
)
OPTIONAL = ("setting", "arm", "seed", "status", *NUMBERS)
# Hyperparameters that need no --columns. Config keys such as optimizer.peak_lr are accepted too.
HYPERPARAMETERS = (
    *("peak_lr", "b1", "b2", "t1_tokens", "t2_tokens", "eps", "weight_decay", "clip_norm", "embed_lr"),
    *("warmup_frac", "warmup_tokens", "decay_frac", "final_lr_frac"),
)
# Status names of other trainers and tracking services.
STATUS_WORDS = {
    **dict.fromkeys(("done", "finished", "completed", "success"), "done"),
    **dict.fromkeys(("diverged", "nan"), "diverged"),
    **dict.fromkeys(("failed", "crashed", "error"), "failed"),
    **dict.fromkeys(("missing", "running", "pending", "queued", "scheduled"), "missing"),
    **dict.fromkeys(("killed", "stopped", "preempted", "preempting"), "missing"),
    "cut": "cut",
    "skipped": "skipped",
}


@dataclass(frozen=True)
class Columns:
    """The meaning of the columns of a file."""

    named: dict[str, str]  # {our name: column}
    hyperparameters: dict[str, str]  # {hyperparameter: column}
    ignored: tuple[str, ...]  # given as -COLUMN

    @property
    def used(self) -> tuple[str, ...]:
        return (*self.named.values(), *self.hyperparameters.values())

    def unused(self, found: list[str]) -> list[str]:
        return [column for column in found if column not in (*self.used, *self.ignored)]


def parse(text: str) -> Columns:
    """Parse --columns, such as 'batch_size=bs,loss_nats=eval_loss,peak_lr=lr,warmup,-run_id'; quotes are allowed."""
    named: dict[str, str] = {}
    hyperparameters: dict[str, str] = {}
    ignored = []
    for word in filter(None, (part.strip() for part in next(csv.reader([text], skipinitialspace=True), []))):
        name, equals, column = (part.strip() for part in word.partition("="))
        if not equals and name.startswith("-"):
            ignored.append(name.removeprefix("-"))
        elif name in (*NEEDED, *OPTIONAL):
            named[name] = column if equals else name
        elif not equals or key_text(name) in HYPERPARAMETERS:
            point_name = _point_name(name)
            if point_name in hyperparameters:
                raise UserError(f"--columns={word}: {name} is mapped twice; map each name to one column")
            hyperparameters[point_name] = column if equals else name
        else:
            names = (*NEEDED, *OPTIONAL, *HYPERPARAMETERS)
            raise UserError(
                f"--columns={word}: unknown name {name!r}{did_you_mean(name, names)}. Use one of {', '.join(names)}; "
                "write the column of any other hyperparameter without ="
            )
    return Columns(named, hyperparameters, tuple(ignored))


def _point_name(name: str) -> str:
    """Return the name of a hyperparameter in a point; all names of the learning rate map to one."""
    return LEARNING_RATE if key_text(name) == key_text(LEARNING_RATE) else name


def read(path: Path, columns: str) -> RunTable:
    """Return the run table of a file. Raises UserError for a column or a value that is not valid."""
    file = run_files.load(path)
    mapped = _complete(path, file.columns, parse(columns))
    if not file.rows:
        raise UserError(f"{path} has no rows; give a file with at least one run")
    rows = _typed(path, file, mapped)
    runs = _with_learning_rates([_run(path, number, row, mapped) for number, row in enumerate(rows, 1)])
    unused = mapped.unused(file.columns)
    _check_seeds(path, rows, runs, unused)
    if "seed" not in mapped.named:
        runs = _with_seeds(runs)
    kept, notes = without_duplicates(runs)
    notes += [*file.notes, *_similar_names(path, kept)]
    if unused or mapped.ignored:
        notes.append(f"unused columns of {path.name}: {', '.join([*unused, *mapped.ignored])}")
    provenance = {
        "name": path.stem,
        "file": str(path),
        "rows": len(rows),
        "statuses": dict(Counter(run.status for run in kept)),
        "seeds": sorted({run.seed for run in kept}) if "seed" in mapped.named else [],
        "columns": {**mapped.named, **mapped.hyperparameters},
    }
    return RunTable(tuple(kept), tuple(notes), (provenance,))


def _complete(path: Path, found: list[str], given: Columns) -> Columns:
    """Return --columns completed by the columns that have our names. Raises UserError if a column is missing."""
    named, hyperparameters = dict(given.named), dict(given.hyperparameters)
    for column in given.unused(found):
        if column in (*NEEDED, *OPTIONAL) and column not in named:
            named[column] = column
        elif key_text(column) in HYPERPARAMETERS:
            first = hyperparameters.setdefault(_point_name(column), column)
            if first != column:
                raise UserError(
                    f"{path}: columns {first} and {column} are the same hyperparameter; "
                    f"ignore one of them with --columns=-{column}"
                )
    for name in NEEDED:
        if name not in named:
            raise UserError(f"{path} has no column {name}; map one to it with --columns={name}=COLUMN{_listed(found)}")
    complete = Columns(named, hyperparameters, given.ignored)
    for column in (*complete.used, *complete.ignored):
        if column not in found:
            raise UserError(f"{path} has no column {column!r}{did_you_mean(column, found)}{_listed(found)}")
    return complete


def _typed(path: Path, file: RowsFile, mapped: Columns) -> list[dict[str, Any]]:
    """Return the rows with numbers parsed in known numeric columns, and in hyperparameter columns of numbers only.

    Other values stay text, because a method may be named 001, true, nan or 2024-01.
    """
    values = {column: [row[i] for row in file.rows] for i, column in enumerate(file.columns)}
    needed = {column: name for name, column in mapped.named.items() if name in (*NEEDED, "seed", *NUMBERS)}
    if LEARNING_RATE in mapped.hyperparameters:
        needed[mapped.hyperparameters[LEARNING_RATE]] = "learning_rate"
    others = [column for column in mapped.hyperparameters.values() if column not in needed]
    numeric = {column: "" for column in others if _looks_numeric(values[column])} | needed
    try:
        decimal = number_format.decimal_mark(
            Written(row, column, value)
            for column in numeric
            for row, value in enumerate(values[column], 1)
            if isinstance(value, str)
        )
    except UserError as error:
        raise UserError(f"{path}, {error}") from error
    for column in mapped.used:
        if column in numeric:
            values[column] = [
                _number(value, numeric[column], decimal, f"{path}, row {row}: {column}")
                for row, value in enumerate(values[column], 1)
            ]
        else:
            values[column] = _categories(values[column])
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def _with_learning_rates(runs: list[Run]) -> list[Run]:
    """Make the learning rate a hyperparameter where runs that agree in everything else differ in it."""
    rates = [None if math.isnan(run.learning_rate) else run.learning_rate for run in runs]
    by_point: dict[tuple, set[float | None]] = defaultdict(set)
    for run, rate in zip(runs, rates, strict=True):
        by_point[_point_key(run)].add(rate)
    if all(len(found) == 1 for found in by_point.values()):
        return runs
    return [
        replace(run, point=tuple(sorted((*run.point, (LEARNING_RATE, rate)))))
        for run, rate in zip(runs, rates, strict=True)
    ]


def _check_seeds(path: Path, rows: list[dict], runs: list[Run], unused: list[str]) -> None:
    """Raise UserError if runs that would be treated as seeds of one configuration differ in an unused column."""
    first: dict[tuple, int] = {}
    for i, run in enumerate(runs):
        earlier = first.setdefault(_point_key(run), i)
        if differing := [column for column in unused if str(rows[i][column]) != str(rows[earlier][column])]:
            raise UserError(
                f"{path}, rows {earlier + 1} and {i + 1} agree in batch size, arm and hyperparameters, but differ in "
                f"unused columns: {', '.join(differing)}. If a column is a hyperparameter, add its name to --columns "
                f"({differing[0]}). To ignore columns, add their names with a minus "
                f"({','.join(f'-{column}' for column in differing)})"
            )


def _with_seeds(runs: list[Run]) -> list[Run]:
    """Number the runs of each point, for files without a seed column."""
    repeats: Counter[tuple] = Counter()
    numbered = []
    for run in runs:
        numbered.append(replace(run, seed=repeats[_point_key(run)]))
        repeats[_point_key(run)] += 1
    return numbered


def _point_key(run: Run) -> tuple:
    return run.setting, run.arm, run.batch_size, run.point


def _looks_numeric(values: list[Any]) -> bool:
    """Return whether a column has values and all of them are numbers; unset values are ignored."""
    known = [value for value in values if not _is_unset(value)]
    return bool(known) and all(
        number_format.is_number(value) if isinstance(value, str) else _is_numeric(value) for value in known
    )


def _is_unset(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in UNSET)


def _is_numeric(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _number(value: Any, name: str, decimal: str, place: str) -> int | float | None:
    """Return a value as a number; None if it is unset. `name` is our name of the column, '' for a hyperparameter."""
    if _is_unset(value):
        return None
    if isinstance(value, str):
        number = number_format.number(value, decimal)
        if number is None:
            raise UserError(_not_a_number(value, name, place))
        if name in LOSSES and number_format.is_grouped(value, decimal):
            raise UserError(f"{place} is {value!r}; write a loss with a decimal point and no thousands separators")
        if name in COUNTS and number_format.looks_like_thousands(value, decimal):
            whole = value.strip().replace(decimal, "")
            decimals = f"{number:g}" if number == int(number) else f"{number}0"
            raise UserError(f"{place} is {value!r}, which can mean {whole} or {number}; write {whole} or {decimals}")
    elif _is_numeric(value):
        number = float(value) if isinstance(value, Decimal) else value
    else:
        raise UserError(_not_a_number(value, name, place))
    if name != "seed" and isinstance(number, int) and abs(number) > 2**53:
        return float(number)
    return None if not name and number != number else number


def _not_a_number(value: Any, name: str, place: str) -> str:
    if name == "seed":
        return f"{place} is {value!r}, not a whole number; write the seed as 0, 1, 2, ..."
    return f"{place} is {value!r}, not a number; write a plain number, such as 1024 or 3.05"


def _categories(values: list[Any]) -> list[Any]:
    """Return text as written. Parquet values of other types become text; unset values become None."""
    found = [_category(value) for value in values]
    return without_apostrophes(found) if all(isinstance(value, str | None) for value in found) else found


def _category(value: Any) -> Any:
    if value is None or value != value:
        return None
    if isinstance(value, Decimal):
        return float(value)
    return value if isinstance(value, str | bool | int | float) else str(value)


def _run(path: Path, number: int, row: dict[str, Any], mapped: Columns) -> Run:
    named, place = mapped.named, f"{path}, row {number}"

    def value(name: str) -> Any:
        return row[named[name]] if name in named else None

    numbers: dict[str, Any] = {name: _or_nan(value(name)) for name in named if name in NUMBERS}
    for name in ("batch_size", "seed", "arm", "setting"):
        if name in named and value(name) is None:
            or_ignore = "" if name in NEEDED else f", or ignore the column with -{named[name]}"
            raise UserError(f"{place}: {named[name]} is empty; fill it in, or remove the row{or_ignore}")
    batch_size = value("batch_size")
    if not (batch_size > 0 and math.isfinite(batch_size)):
        column = named["batch_size"]
        raise UserError(f"{place}: {column} is {batch_size!r}, not a number above 0; correct it, or remove the row")
    seed = 0 if value("seed") is None else value("seed")
    if not (math.isfinite(seed) and seed == int(seed)):
        raise UserError(_not_a_number(seed, "seed", f"{place}: {named['seed']}"))
    status, loss = _outcome(place, value("status"), value("loss_nats"))
    setting = path.stem if value("setting") is None else value_text("setting", value("setting"))
    arm = "all runs" if value("arm") is None else str(value("arm"))
    point = tuple(sorted((name, row[column]) for name, column in mapped.hyperparameters.items()))
    if LEARNING_RATE in mapped.hyperparameters and "learning_rate" not in named:
        numbers["learning_rate"] = _or_nan(row[mapped.hyperparameters[LEARNING_RATE]])
    return Run(
        setting=setting,
        arm=arm,
        batch_size=batch_size,
        seed=int(seed),
        point=point,
        status=status,
        loss_nats=loss,
        source=f"{path.name}, row {number}",
        **numbers,
    )


def _or_nan(number: float | None) -> float:
    return math.nan if number is None else number


def _outcome(place: str, status: Any, loss: float | None) -> tuple[str, float]:
    """Return (status, loss). Without a status, a non-finite loss means diverged and an empty one means missing."""
    loss_nats = _or_nan(loss)
    unfinished = "missing" if loss is None else "diverged"
    if status is None:
        word = "done" if math.isfinite(loss_nats) else unfinished
    else:
        word = STATUS_WORDS.get(str(status).strip().lower(), "")
        if not word:
            raise UserError(f"{place}: status is {status!r}; use one of {', '.join(STATUS_WORDS)}")
        if word == "done" and not math.isfinite(loss_nats):
            word = unfinished
    return word, {"done": loss_nats, "diverged": math.inf}.get(word, np.nan)


def _similar_names(path: Path, runs: list[Run]) -> list[str]:
    """Return a note for each set of names that differ only in spaces or capitals."""
    notes = []
    for kind, names in (("arm", {run.arm for run in runs}), ("setting", {run.setting for run in runs})):
        same: dict[str, list[str]] = defaultdict(list)
        for name in sorted(names):
            same[" ".join(name.split()).casefold()].append(name)
        notes += [
            f"{path.name}: the {kind}s {' and '.join(map(repr, similar))} differ only in spaces or capitals; they "
            "count as different"
            for similar in same.values()
            if len(similar) > 1
        ]
    return notes


def _listed(found: list[str]) -> str:
    return f"; it has {', '.join(found)}"
