"""Render the report as one self-contained HTML file, for light, dark and narrow screens; answers come first.

The template escapes all text from configs and files. The only unescaped markup is that of our figures, in which
matplotlib escapes the text.
"""

import json
import warnings as python_warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import quote

from smallbatch.analysis.report import drawing, figures, grid_figures
from smallbatch.analysis.report.figures import Picture
from smallbatch.analysis.report.findings import FIRST, answers
from smallbatch.analysis.report.study import Study
from smallbatch.analysis.report.tables import Row, Sheet, cell_text, split
from smallbatch.analysis.report.warnings import unsaid, warnings
from smallbatch.runs.escaping import csv_text, printable

ROWS_SHOWN = 400  # a sheet with more is a file to download, not a table to read


@dataclass(frozen=True)
class Section:
    """A heading with the sentence that defines what is under it, its figures, and its sheets."""

    name: str
    title: str
    says: str
    draw: tuple[Callable[[Study], list[Picture]], ...]
    sheets: tuple[str, ...]


SECTIONS = (
    Section("loss", "Loss at equal FLOPs",
            "The chosen cell of each grid, by its mean loss on seeds that did not choose it; beside it the lowest mean "
            "over all seeds, and the luckiest single run, which is what papers print.",
            (figures.loss_against_batch,), ("equal_flops",)),
    Section("gaps", "Gaps between arms", "Difference in loss at the same batch size.",
            (figures.gaps_against_batch,), ("gaps",)),
    Section("curves", "Along the budget",
            "The lowest loss over each grid at every budget. Where the learning rate falls to zero at the end, a loss "
            "on the way is not what a shorter run would have reached.",
            (figures.curves_along_budget,), ("loss_at_budgets", "loss_curves")),
    Section("cost", "Cost to reach a loss",
            "What the cheapest cell of each grid spends until its smoothed curve first comes down to the target.",
            (figures.cost_against_batch,), ("cost_to_target",)),
    Section("robustness", "Robustness to hyperparameters",
            "One hyperparameter of the tuned point is multiplied, the others stay (Marek et al. 2025, figure 3). The "
            "largest regret is the largest rise between multipliers 1/8 and 8, as far as the grid reaches. Maps of "
            "three or more hyperparameters are drawn against the learning rate; the other pairs are in heat_maps.csv.",
            (grid_figures.robustness_profiles, grid_figures.widths, grid_figures.heat_maps),
            ("robustness", "good_cells", "robustness_profiles", "heat_maps")),
    Section("search", "How much tuning it takes",
            "The best of n different cells of the grid in random order, exactly; a diverged cell is a trial spent.",
            (grid_figures.random_search,), ("random_trials",)),
    Section("rates", "Learning rate against batch size",
            "The vertex of a parabola through the best cell and its neighbours, in the logarithm of the learning rate. "
            "Its interval extends to the neighbours of all cells that do not differ significantly from the best one.",
            (figures.learning_rate_against_batch,), ("learning_rates", "learning_rate_laws")),
    Section("critical", "Critical batch size",
            "Steps S(B) = a + b/B to a target loss, fitted in logarithms. No estimate is given where the steps bound "
            "it on one side only, or on neither. The value depends on the definition, which is given beside each "
            "(Zhang et al. 2024).",
            (grid_figures.steps_to_target, grid_figures.critical_against_scale),
            ("critical_batch", "critical_batch_laws", "steps_to_target")),
    Section("gradients", "Gradients and updates",
            "E|g|² = |G|² + tr(S)/B; the noise scale tr(S)/|G|² is the batch size at which both parts are equal "
            "(McCandlish et al. 2018).",
            (grid_figures.gradients_against_batch,), ("gradients", "noise_scale_fits")),
    Section("hardware", "Memory and throughput", "Medians over the finished runs, on the devices named below.",
            (figures.speed_and_memory,), ("hardware",)),
)  # fmt: skip


def to_csv(sheet: Sheet) -> str:
    """Return a sheet as CSV with a header line; unknown values are empty, infinities are inf."""
    return csv_text([sheet.columns, *([row[column] for column in sheet.columns] for row in sheet.rows)])


def draw(study: Study) -> dict[str, list[Picture]]:
    """Return the figures of each section; their names differ even on file systems that ignore case."""
    with drawing.style(), python_warnings.catch_warnings():
        # The browser renders the text with its own font, so glyphs missing from matplotlib's font do not matter.
        python_warnings.filterwarnings("ignore", message="Glyph .* missing from")
        pictures = {section.name: [p for function in section.draw for p in function(study)] for section in SECTIONS}
    taken: set[str] = set()
    return {name: [_renamed(picture, taken) for picture in own] for name, own in pictures.items()}


def _renamed(picture: Picture, taken: set[str]) -> Picture:
    name, number = picture.name, 1
    while name.casefold() in taken:
        number += 1
        name = f"{picture.name}-{number}"
    taken.add(name.casefold())
    return picture if number == 1 else replace(picture, name=name, svg=drawing.renamed(picture.svg, picture.name, name))


def comparable(sheet: Sheet) -> list[Sheet]:
    """Return the tables of a sheet: one per target loss if arms of a setting have different targets.

    Steps to different losses, and critical batch sizes computed from them, must not be compared in one column.
    """
    if "target_loss_nats" not in sheet.columns:
        return [sheet]
    targets: dict[str, set[float]] = {}
    for row in sheet.rows:
        targets.setdefault(row["setting"], set()).add(row["target_loss_nats"])
    if all(len(found) == 1 for found in targets.values()):
        return [sheet]
    return [
        Sheet(sheet.name, f"{sheet.title}, target {target:g} nats", tuple(rows))
        for (target,), rows in split(sheet.rows, "target_loss_nats").items()
    ]


def render(study: Study, pictures: dict[str, list[Picture]], title: str) -> str:
    """Return the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("smallbatch.analysis.report", "."),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda value: printable(value) if type(value) is str else value,
    )  # fmt: skip
    environment.filters["cell"] = lambda value, column: cell_text(column, value)
    environment.filters["heading"] = lambda column: column.replace("_", " ")
    environment.filters["order"] = _order
    environment.filters["download"] = lambda text: Markup("data:text/csv;charset=utf-8,") + quote(text)
    missing = unsaid(study)
    used = {picture.svg for own in pictures.values() for picture in own}
    names = [
        name for name in drawing.palette() if any(f"({name})" in svg for svg in used) or name in ("--ink", "--line")
    ]
    sections = [
        {"name": s.name, "title": s.title, "says": s.says, "unsaid": missing[s.name][0].upper() + missing[s.name][1:],
         "pictures": pictures[s.name],
         "sheets": [(study.sheets[name], comparable(study.sheets[name])) for name in s.sheets if study.rows(name)]}
        for s in SECTIONS
    ]  # fmt: skip
    return environment.get_template("page.html").render(
        title=title,
        answers=answers(study),
        headline=FIRST,
        warnings=warnings(study),
        sections=sections,
        runs=study.sheets["runs"],
        provenance=[_provenance(sweep) for sweep in study.table.provenance],
        colours={name: drawing.palette()[name] for name in names},
        csv={name: to_csv(sheet) for name, sheet in study.sheets.items() if sheet.rows},
        svg=Markup,
        rows_shown=ROWS_SHOWN,
    )


def _order(value: object) -> str:
    """What a table is sorted by: the number itself, not as it is written."""
    return repr(float(value)) if isinstance(value, int | float) else ""


def _provenance(sweep: Row) -> dict:
    """The facts of a sweep as (name, text), its fingerprints and its config apart, for they are long."""
    long = {key: sweep[key] for key in ("config", "fingerprints") if sweep.get(key)}
    facts = []
    for key, value in sweep.items():
        if key in ("name", *long) or value in (None, [], {}, ""):
            continue
        if isinstance(value, dict):
            value = ", ".join(
                f"{k} {' and '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in value.items()
            )
        elif isinstance(value, list):
            value = (" to " if key == "finished" else ", ").join(map(str, value))
        facts.append((key.replace("_", " "), str(value)))
    return {
        "name": sweep["name"],
        "facts": facts,
        "long": {key: json.dumps(value, indent=1, ensure_ascii=False) for key, value in long.items()},
    }
