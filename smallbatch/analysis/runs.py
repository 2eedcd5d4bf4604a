"""List all requested runs, and warn about those without a result and about differences between their sources."""

import math
from collections import Counter
from collections.abc import Iterator

from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report.options import Options
from smallbatch.analysis.report.section import Analysis, Section, Table
from smallbatch.analysis.report.tables import Row, listed, point_text

MAX_NAMED = 3  # failed runs listed by name in a warning
NUMBERS = ("loss_nats", "average_loss_nats", "validation_loss_se_nats", "tokens", "flops", "steps", "secs")


def run_rows(runs: RunTable) -> list[Row]:
    """Return one row for each requested run."""
    return [
        {
            "setting": run.setting,
            "arm": run.arm,
            "batch_size": run.batch_size,
            "point": point_text(run.point),
            "seed": run.seed,
            "status": run.status,
            **{name: value if math.isfinite(value := float(getattr(run, name))) else None for name in NUMBERS},
            "source": run.source,
        }
        for run in runs.runs
    ]


def tables(runs: RunTable, options: Options) -> list[Table]:
    return [Table("runs", "Runs", run_rows(runs), in_summary=False)]


def warnings(analysis: Analysis) -> Iterator[str]:
    """Yield the numbers of runs without a result, and the differences between datasets and versions."""
    runs, provenance = analysis.runs.runs, analysis.runs.provenance
    counts = Counter(run.status for run in runs)
    failed = [run.failure_file or run.source for run in runs if run.status == "failed"]
    more = f" and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else ""

    def be(status: str) -> str:
        return "is" if counts[status] == 1 else "are"

    effects = {
        "missing": f"{be('missing')} missing (not started or not finished) and left out",
        "failed": f"failed ({'; '.join(failed[:MAX_NAMED])}{more}) and {be('failed')} counted as missing",
        "cut": f"stopped early and {be('cut')} counted as worse than any finished run",
        "skipped": f"{be('skipped')} marked as skipped (a lower learning rate diverged) and counted as diverged",
        "diverged": f"diverged and {be('diverged')} counted as a loss of +infinity",
    }
    for status, effect in effects.items():
        if counts[status]:
            yield f"{counts[status]} of {len(runs)} runs {effect}."
    datasets = {sha for source in provenance for sha in source.get("datasets", ())}
    if len(datasets) > 1:
        yield f"The runs used {len(datasets)} different datasets, so their losses cannot be compared."
    for package in ("smallbatch", "jax"):
        versions = {version for source in provenance for version in source.get("versions", {}).get(package, ())}
        if len(versions) > 1:
            yield f"The runs used different versions of {package}: {listed(sorted(versions))}."


SECTION = Section(
    name="runs",
    title="Runs",
    description=(
        "All requested runs. A method (column arm) is an optimizer with the keys that define it. A setting is a sweep "
        "with its model, data and budget. A grid is all runs of a method at one batch size in a setting."
    ),
    tables=tables,
    warnings=warnings,
)
