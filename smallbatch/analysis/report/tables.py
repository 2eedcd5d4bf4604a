"""A sheet: the rows that an analysis gives out, as they go into CSV, JSON, the page and the answers.

One idea: an analysis returns plain rows, {column: value}, with units in the column names; how a number is written for a
person is decided once, here.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from smallbatch.analysis.read.run_table import Point
from smallbatch.runs.progress import format_bytes, format_count, format_secs

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Sheet:
    """Rows of one analysis, all with the same columns; `name` is that of its CSV file."""

    name: str
    title: str
    rows: tuple[Row, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.rows[0]) if self.rows else ()


def split(rows: Iterable[Row], *keys: str) -> dict[tuple, list[Row]]:
    """Return the rows by the values of some columns, in the order of their first."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def point_text(point: Point) -> str:
    """Write a point for a person: 'peak_lr 0.0039, t2_tokens 1M'."""
    return ", ".join(f"{key_text(name)} {value_text(name, value)}" for name, value in point if value is not None)


def key_text(key: str) -> str:
    """A config key without its section: optimizer.peak_lr -> peak_lr."""
    return key.rpartition(".")[2]


def value_text(key: str, value: Any) -> str:
    """Write a config value: token counts with a suffix, other numbers with three digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if key.endswith("_tokens") and math.isfinite(value):
        return short_count(value)
    return batch_text(value) if isinstance(value, int) else f"{value:.3g}"


def short_count(count: float) -> str:
    """Write a count with a suffix and no more digits than it needs: 1M, 20.1k."""
    return re.sub(r"\.(\d*?)0*(?=[A-Za-z])", lambda m: f".{m[1]}" if m[1] else "", format_count(count))


def batch_text(size: float) -> str:
    """Write a batch size: a whole number of sequences where it is one."""
    return f"{size:.0f}" if float(size).is_integer() else f"{size:g}"


def loss_text(loss_nats: float, interval: tuple[float, float] | None = None) -> str:
    """Write a loss with three decimals, and with its interval where there is one."""
    if not math.isfinite(loss_nats):
        return "unknown" if math.isnan(loss_nats) else "diverged"
    return f"{loss_nats:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def cell_text(column: str, value: Any) -> str:
    """Write one value of a sheet for the page, by the unit that its column is named after."""
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


def size_text(size: float) -> str:
    """Write a batch size that was worked out: three digits, and no power of ten below a million."""
    return f"{size:.0f}" if 100 <= size < 1e6 else f"{size:.3g}"


def listed(words: list[str]) -> str:
    """Write a list as a person would: 'a, b and c'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def counted(number: int, name: str) -> str:
    """Write '1 seed', '2 seeds'."""
    return f"{number} {name}{'s' * (number != 1)}"


def finite_number(value: float | None) -> bool:
    """Whether a value of a row is known and finite."""
    return value is not None and math.isfinite(value)
