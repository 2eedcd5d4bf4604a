"""Define a section of the report: what one analysis declares, and the results that all sections read.

An analysis file ends with a `Section`. `smallbatch/analysis/analyze.py` lists the sections in the order of the page.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from matplotlib.axes import Axes

from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report.options import Options
from smallbatch.analysis.report.tables import Row, batch_text


@dataclass(frozen=True)
class Table:
    """Rows of an analysis, all with the same columns; `name` is also the name of the CSV file."""

    name: str
    title: str
    rows: Sequence[Row]
    in_summary: bool = True  # False: too long for summary.json

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.rows[0]) if self.rows else ()


@dataclass(frozen=True)
class Figure:
    """A plot with its caption, and the name of the table that it shows; `name` is also the name of the SVG file."""

    name: str
    axes: Axes
    caption: str
    table: str


@dataclass(frozen=True)
class Finding:
    """One sentence under a topic; `setting` is None if it is about several settings."""

    topic: str
    text: str
    setting: str | None = None


def _nothing(analysis: "Analysis") -> tuple[()]:
    return ()


Tables: TypeAlias = Callable[[RunTable, Options], Iterable[Table]]


@dataclass(frozen=True)
class Section:
    """One analysis of the report. `findings`, `warnings` and `figures` are computed from its tables."""

    name: str  # the anchor on the page
    title: str
    description: str  # one or two sentences that define the quantities
    tables: Tables
    figures: Callable[["Analysis"], Iterable[Figure]] = _nothing
    findings: Callable[["Analysis"], Iterable[Finding]] = _nothing
    warnings: Callable[["Analysis"], Iterable[str]] = _nothing
    empty: Callable[["Analysis"], str] = lambda analysis: ""  # what is missing, shown if there is no figure


@dataclass(frozen=True, eq=False)
class Analysis:
    """The tables of every section for one run table."""

    runs: RunTable
    options: Options
    sections: dict[Section, tuple[Table, ...]]

    @functools.cached_property
    def tables(self) -> dict[str, Table]:
        return {table.name: table for tables in self.sections.values() for table in tables}

    def rows(self, table: str) -> Sequence[Row]:
        return self.tables[table].rows

    def in_setting(self, setting: str, form: str = " ({})") -> str:
        """Return the name of a setting for a sentence; empty if there is only one."""
        return form.format(setting) if len(self.runs.settings) > 1 else ""

    def findings(self) -> dict[str, list[str]]:
        """Return {topic: sentences} in the order of the sections; with several settings, the topics of each."""
        found: dict[str, list[str]] = {}
        for section in self.sections:
            for finding in section.findings(self):
                setting = "" if finding.setting is None else self.in_setting(finding.setting, " · {}")
                found.setdefault(finding.topic + setting, []).append(finding.text)
        return found

    def warnings(self) -> list[str]:
        """Return the warnings of all sections, and the notes of the readers of the runs."""
        return [*(text for section in self.sections for text in section.warnings(self)), *self.runs.notes]

    def grid_text(self, row: Row) -> str:
        """Return 'METHOD at batch size B' for a sentence about one row."""
        return f"{row['arm']}{self.in_setting(row['setting'])} at batch size {batch_text(row['batch_size'])}"
