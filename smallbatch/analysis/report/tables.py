"""Rows of tables, and how their values are written for a reader.

A row is {column: value}. The last word of a column name is the unit. A column with an interval has two more columns,
NAME_low and NAME_high.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from smallbatch.analysis.read.run_table import Group, Point
from smallbatch.runs.progress import format_bytes, format_count, format_secs

Row: TypeAlias = dict[str, Any]


def group_columns(group: Group) -> Row:
    """Return the first columns of a row about one group of runs."""
    return {"setting": group.setting, "arm": group.arm, "batch_size": group.batch_size}


def split(rows: Iterable[Row], *keys: str) -> dict[tuple, list[Row]]:
    """Return the rows by their values in some columns, in the order in which the values first occur."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """Return one column as floats; NaN where the value is unknown."""
    return np.array([np.nan if row[name] is None else row[name] for row in rows], float)


def finite_number(value: float | None) -> bool:
    """Return whether a value of a row is known and finite."""
    return value is not None and math.isfinite(value)


def interval(row: Row, name: str) -> tuple[float, float] | None:
    """Return the interval of a column, or None if it has none in this row."""
    return None if row[f"{name}_low"] is None else (row[f"{name}_low"], row[f"{name}_high"])


def interval_text(row: Row, name: str, form: str) -> str:
    """Format the interval of a column, such as ' (0.1 to 0.3)'. Return '' if there is none."""
    found = interval(row, name)
    return f" ({found[0]:{form}} to {found[1]:{form}})" if found else ""


def point_text(point: Point) -> str:
    """Write a configuration, such as 'peak_lr 0.0039, t2_tokens 1M'."""
    return ", ".join(f"{key_text(name)} {value_text(name, value)}" for name, value in point if value is not None)


def key_text(key: str) -> str:
    """Return a config key without its section, such as peak_lr for optimizer.peak_lr."""
    return key.rpartition(".")[2]


def value_text(key: str, value: Any) -> str:
    """Format a config value: token counts with a suffix, other numbers with three digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if key.endswith("_tokens") and math.isfinite(value):
        return short_count(value)
    return batch_text(value) if isinstance(value, int) else f"{value:.3g}"


def short_count(count: float) -> str:
    """Write a count with a suffix and without trailing zeros, such as 1M or 20.1k."""
    return re.sub(r"\.(\d*?)0*(?=[A-Za-z])", lambda m: f".{m[1]}" if m[1] else "", format_count(count))


def batch_text(size: float) -> str:
    """Write a batch size, as an integer if it is one."""
    return f"{size:.0f}" if float(size).is_integer() else f"{size:g}"


def size_text(size: float) -> str:
    """Write an estimated batch size with three digits, without an exponent below a million."""
    return f"{size:.0f}" if 100 <= size < 1e6 else f"{size:.3g}"


def cell_text(column: str, value: Any) -> str:
    """Write one value of a table for the page, by the unit in the name of its column."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    unit = column.removesuffix("_low").removesuffix("_high").rpartition("_")[2]
    if "per" in column:
        return format_count(value)
    if unit == "nats":
        return f"{value:.4f}"
    if unit == "bytes":
        return format_bytes(value)
    if unit == "secs":
        return format_secs(value)
    if unit in ("tokens", "steps", "flops", "params"):
        return f"{value:.3g}" if value >= 1e15 else format_count(value)
    return batch_text(value) if float(value).is_integer() and abs(value) < 1e6 else f"{value:.4g}"


def listed(words: Sequence[str]) -> str:
    """Write a list, such as 'a, b and c'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def counted(number: int, name: str) -> str:
    """Write a count with its noun, such as '1 seed' or '2 seeds'."""
    return f"{number} {name}{'s' * (number != 1)}"
