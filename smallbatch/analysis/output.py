"""What a report leaves behind: index.html, a CSV for each sheet, an SVG for each figure, summary.json; and its text.

One idea: all is worked out before the first file is written, so that a report is never half an old one.
"""

import math
import textwrap
from pathlib import Path
from typing import Any

from smallbatch import __version__
from smallbatch.analysis import drawing, page
from smallbatch.analysis.answers import answers
from smallbatch.analysis.caveats import warnings
from smallbatch.analysis.study import Study
from smallbatch.errors import UserError
from smallbatch.records import write_bytes, write_json

SUMMARY_FORMAT = 1
LONG = ("loss_curves", "robustness_profiles", "heat_maps", "random_trials", "runs")  # in CSV alone


def write(study: Study, directory: Path) -> Path:
    """Write the report and return the path of its page. Raises UserError where the directory cannot be written."""
    title = "Report: " + ", ".join(dict.fromkeys(str(sweep["name"]) for sweep in study.table.provenance))
    pictures = page.draw(study)
    html = page.render(study, pictures, title)
    try:
        (directory / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {directory}: {error.strerror}; choose another place with --out=DIR") from error
    for sheet in study.sheets.values():
        if sheet.rows:
            write_bytes(directory / f"{sheet.name}.csv", page.to_csv(sheet).encode())
        else:
            (directory / f"{sheet.name}.csv").unlink(missing_ok=True)  # of an earlier report
    for old in (directory / "figures").glob("*.svg"):
        old.unlink()
    for own in pictures.values():
        for picture in own:
            write_bytes(directory / "figures" / f"{picture.name}.svg", drawing.standalone(picture.svg).encode())
    write_json(directory / "summary.json", summary(study))
    write_bytes(directory / "index.html", html.encode())
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
    return "\n".join(lines)


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
