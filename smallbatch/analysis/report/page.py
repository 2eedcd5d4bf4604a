"""Render a report as one self-contained HTML file for light, dark and narrow screens.

The template escapes all text from configs and files. The only unescaped markup is that of our figures, in which
matplotlib escapes the text.
"""

import json
import warnings
from dataclasses import dataclass
from urllib.parse import quote

from smallbatch.analysis.report import drawing
from smallbatch.analysis.report.section import Analysis, Section, Table
from smallbatch.analysis.report.tables import Row, cell_text, split
from smallbatch.runs.escaping import csv_text, printable

MAX_ROWS = 400  # a longer table is only a file to download
NAME_BYTES = 180  # of a figure's file name; file systems allow 255, including suffix and prefix


@dataclass(frozen=True)
class Drawing:
    """A figure as SVG, under a name that is unique in the report."""

    name: str
    svg: str
    caption: str
    table: str


def to_csv(table: Table) -> str:
    """Return a table as CSV with a header line; unknown values are empty, infinities are inf."""
    return csv_text([table.columns, *([row[column] for column in table.columns] for row in table.rows)])


def draw(analysis: Analysis) -> dict[Section, list[Drawing]]:
    """Draw the figures of each section. Their names differ even on file systems that ignore case."""
    drawn: dict[Section, list[Drawing]] = {section: [] for section in analysis.sections}
    used: set[str] = set()
    with drawing.style(), warnings.catch_warnings():
        # The browser renders the text with its own font, so glyphs missing from matplotlib's font do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for section in analysis.sections:
            for figure in section.figures(analysis):
                drawing.legend(figure.axes)
                name = _unused_name(figure.name, used)
                svg = drawing.to_svg(figure.axes, name, figure.caption)
                drawn[section].append(Drawing(name, svg, figure.caption, figure.table))
    return drawn


def _unused_name(name: str, used: set[str]) -> str:
    """Return a name as a file name that is not in `used`, and add it there."""
    safe = "".join(letter if letter.isalnum() else "-" for letter in name).encode()[:NAME_BYTES].decode(errors="ignore")
    unique, number = safe, 1
    while unique.casefold() in used:
        number += 1
        unique = f"{safe}-{number}"
    used.add(unique.casefold())
    return unique


def comparable(table: Table) -> list[Table]:
    """Split a table by target loss if the methods of a setting have different targets.

    Steps to different losses, and critical batch sizes computed from them, must not be compared in one column.
    """
    if "target_loss_nats" not in table.columns:
        return [table]
    targets = [split(rows, "target_loss_nats") for rows in split(table.rows, "setting").values()]
    if all(len(found) == 1 for found in targets):
        return [table]
    return [
        Table(table.name, f"{table.title}, target {target:g} nats", rows)
        for (target,), rows in split(table.rows, "target_loss_nats").items()
    ]


def render(analysis: Analysis, figures: dict[Section, list[Drawing]]) -> str:
    """Return the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("smallbatch.analysis.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["cell"] = lambda value, column: cell_text(column, value)
    environment.filters["heading"] = lambda column: column.replace("_", " ")
    # Tables are sorted by the numbers, not by their texts.
    environment.filters["order"] = lambda value: repr(float(value)) if isinstance(value, int | float) else ""
    environment.filters["download"] = lambda text: Markup("data:text/csv;charset=utf-8,") + quote(text)
    svgs = [figure.svg for drawn in figures.values() for figure in drawn]
    colours = {
        name: pair
        for name, pair in drawing.palette().items()
        if name in ("--ink", "--line") or any(f"({name})" in svg for svg in svgs)
    }
    sections = [
        {
            "name": section.name,
            "title": section.title,
            "description": section.description,
            "empty": section.empty(analysis),
            "figures": figures[section],
            "tables": [(table, comparable(table)) for table in tables if table.rows],
        }
        for section, tables in analysis.sections.items()
    ]
    return environment.get_template("page.html").render(
        title="Report: " + ", ".join(dict.fromkeys(str(source["name"]) for source in analysis.runs.provenance)),
        findings=analysis.findings(),
        warnings=analysis.warnings(),
        sections=sections,
        provenance=[_provenance(source) for source in analysis.runs.provenance],
        colours=colours,
        csv={name: to_csv(table) for name, table in analysis.tables.items() if table.rows},
        svg=Markup,
        max_rows=MAX_ROWS,
    )


def _provenance(source: Row) -> dict:
    """Return the name of a source of runs, its facts as (name, text), and its long values as JSON."""
    long = {key: source[key] for key in ("config", "fingerprints") if source.get(key)}
    facts = []
    for key, value in source.items():
        if key in ("name", *long) or value in (None, [], {}, ""):
            continue
        if isinstance(value, dict):
            value = ", ".join(
                f"{name} {' and '.join(map(str, part)) if isinstance(part, list) else part}"
                for name, part in value.items()
            )
        elif isinstance(value, list):
            value = (" to " if key == "finished" else ", ").join(map(str, value))
        facts.append((key.replace("_", " "), str(value)))
    return {
        "name": source["name"],
        "facts": facts,
        "long": {key: json.dumps(value, indent=1, ensure_ascii=False) for key, value in long.items()},
    }
