"""Run all analyses on a run table. To add a section to the report, write a file like gaps.py and list it here."""

from collections.abc import Sequence

from smallbatch.analysis import (
    budgets,
    cost,
    critical_batch,
    gaps,
    gradients,
    hardware,
    heat_maps,
    learning_rates,
    loss,
    robustness,
    runs,
    trials,
)
from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report.options import DEFAULTS, Options
from smallbatch.analysis.report.section import Analysis, Section

SECTIONS = (
    runs.SECTION,
    loss.SECTION,
    gaps.SECTION,
    budgets.SECTION,
    cost.SECTION,
    robustness.SECTION,
    heat_maps.SECTION,
    trials.SECTION,
    learning_rates.SECTION,
    critical_batch.SECTION,
    gradients.SECTION,
    hardware.SECTION,
)


def analyze(table: RunTable, options: Options = DEFAULTS, sections: Sequence[Section] = SECTIONS) -> Analysis:
    """Return the tables of all sections."""
    return Analysis(table, options, {section: tuple(section.tables(table, options)) for section in sections})
