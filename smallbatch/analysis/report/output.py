"""Write a report: index.html, one CSV file per table, one SVG file per figure, and summary.json.

All contents are computed before the first file is written, so a failure leaves the previous report intact.
"""

import math
import textwrap
from pathlib import Path
from typing import Any

from smallbatch import __version__
from smallbatch.analysis.report import drawing, page
from smallbatch.analysis.report.report_dir import ReportDirectory
from smallbatch.analysis.report.section import Analysis
from smallbatch.runs.escaping import encodable, printable
from smallbatch.runs.records import json_bytes

SUMMARY_FORMAT = 2


def write(analysis: Analysis, directory: Path) -> Path:
    """Write the report and return the path of its page. Raises UserError if it cannot be written there."""
    sources = [source.get("file") or source.get("directory") for source in analysis.runs.provenance]
    report_directory = ReportDirectory(directory, [Path(source) for source in sources if source])
    figures = page.draw(analysis)
    files = {f"{table.name}.csv": page.to_csv(table).encode() for table in analysis.tables.values() if table.rows}
    for drawn in figures.values():
        files |= {f"figures/{figure.name}.svg": drawing.standalone(figure.svg).encode() for figure in drawn}
    files["summary.json"] = json_bytes(summary(analysis))
    files["index.html"] = page.render(analysis, figures).encode()
    report_directory.write(files)
    return directory / "index.html"


def summary(analysis: Analysis) -> dict[str, Any]:
    """Return the content of summary.json: findings, warnings, and all but the longest tables.

    JSON has no infinities, so they are written as the strings 'inf' and '-inf'. Unknown values are null.
    """
    return _json(
        {
            "format": SUMMARY_FORMAT,
            "smallbatch": __version__,
            "options": vars(analysis.options),
            "findings": analysis.findings(),
            "warnings": analysis.warnings(),
            "provenance": list(analysis.runs.provenance),
            **{name: list(table.rows) for name, table in analysis.tables.items() if table.in_summary},
        }
    )


def text(analysis: Analysis) -> str:
    """Return the findings and warnings as lines for a terminal."""
    warnings = analysis.warnings()
    lines: list[str] = []
    for heading, sentences in (analysis.findings() | ({"Warnings": warnings} if warnings else {})).items():
        lines.append(heading)
        for sentence in sentences:
            lines += textwrap.wrap(sentence, 110, initial_indent="  ", subsequent_indent="    ", break_long_words=False)
    return printable("\n".join(lines))


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {encodable(str(key)): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return encodable(value) if isinstance(value, str) else value
