"""Write a report (index.html, CSV tables, SVG figures, summary.json), and format its text for a terminal.

All contents are computed before the first file is written, so a failure leaves the previous report intact.
"""

import math
import textwrap
from pathlib import Path
from typing import Any

from smallbatch import __version__
from smallbatch.analysis.report import drawing, page
from smallbatch.analysis.report.findings import answers
from smallbatch.analysis.report.report_dir import ReportDirectory
from smallbatch.analysis.report.study import Study
from smallbatch.analysis.report.warnings import warnings
from smallbatch.runs.escaping import encodable, printable
from smallbatch.runs.records import json_bytes

SUMMARY_FORMAT = 1
LONG = ("loss_curves", "robustness_profiles", "heat_maps", "random_trials", "runs")  # in CSV alone


def write(study: Study, directory: Path) -> Path:
    """Write the report and return the path of its page. Raises UserError if it cannot be written there."""
    sources = [sweep.get("file") or sweep.get("directory") for sweep in study.table.provenance]
    own = ReportDirectory(directory, [Path(source) for source in sources if source])
    title = "Report: " + ", ".join(dict.fromkeys(str(sweep["name"]) for sweep in study.table.provenance))
    pictures = page.draw(study)
    html = page.render(study, pictures, title)
    files = {f"{sheet.name}.csv": page.to_csv(sheet).encode() for sheet in study.sheets.values() if sheet.rows}
    files |= {
        f"figures/{picture.name}.svg": drawing.standalone(picture.svg).encode()
        for pictures_of_section in pictures.values()
        for picture in pictures_of_section
    }
    own.write(files | {"summary.json": json_bytes(summary(study)), "index.html": html.encode()})
    return directory / "index.html"


def summary(study: Study) -> dict[str, Any]:
    """Return what a program would want: answers, warnings, and the rows of every sheet that is not long.

    JSON has no infinities: they are the strings 'inf' and '-inf'; what is not known is null.
    """
    return _json(
        {
            "format": SUMMARY_FORMAT,
            "smallbatch": __version__,
            "questions": vars(study.questions),
            "answers": answers(study),
            "warnings": warnings(study),
            "provenance": list(study.table.provenance),
            **{name: list(sheet.rows) for name, sheet in study.sheets.items() if name not in LONG},
        }
    )


def text(study: Study) -> str:
    """Return the answers and warnings as lines for a terminal."""
    lines: list[str] = []
    for topic, sentences in answers(study).items():
        lines.append(topic)
        for sentence in sentences:
            lines += textwrap.wrap(sentence, 110, initial_indent="  ", subsequent_indent="    ", break_long_words=False)
    said = warnings(study)
    if said:
        lines.append("Before you believe it")
        for sentence in said:
            lines += textwrap.wrap(sentence, 110, initial_indent="  ", subsequent_indent="    ", break_long_words=False)
    return printable("\n".join(lines))


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {encodable(str(key)): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, str):
        return encodable(value)
    return value
