"""Report memory and throughput per batch size and method, as the runs recorded them on their hardware."""

from collections.abc import Iterator

import numpy as np

from smallbatch.analysis.read.run_table import Run, RunTable
from smallbatch.analysis.report import drawing
from smallbatch.analysis.report.options import Options
from smallbatch.analysis.report.section import Analysis, Figure, Section, Table
from smallbatch.analysis.report.tables import Row, group_columns, split


def hardware(runs: RunTable) -> list[Row]:
    """Return medians over the finished runs of each method and batch size."""
    rows: list[Row] = []
    for group in runs.groups:
        done = [run for run in group.all_runs() if run.status == "done"]
        tokens_per_sec = _median(done, "tokens_per_sec")
        row = {
            **group_columns(group),
            "runs": len(done),
            "tokens_per_sec": tokens_per_sec,
            "flops_per_sec": tokens_per_sec * _median(done, "flops") / _median(done, "tokens"),
            "run_secs": _median(done, "secs"),
            "memory_bytes": _memory_bytes(done),
            "params": _median(done, "params"),
        }
        if any(np.isfinite(row[name]) for name in ("tokens_per_sec", "run_secs", "memory_bytes")):
            rows.append(row)
    return rows


def _memory_bytes(runs: list[Run]) -> float:
    """Return the memory of the compiled program on one device, or else the `peak_memory_bytes` column of a CSV.

    The peak memory of our own processes is not used: an earlier run in the same process may have caused it.
    """
    program_bytes = _median(runs, "program_memory_bytes")
    return program_bytes if np.isfinite(program_bytes) else _median(runs, "peak_memory_bytes")


def _median(runs: list[Run], name: str) -> float:
    known = [value for run in runs if np.isfinite(value := getattr(run, name))]
    return float(np.median(known)) if known else np.nan


def tables(runs: RunTable, options: Options) -> list[Table]:
    return [Table("hardware", "Memory and throughput", hardware(runs))]


def figures(analysis: Analysis) -> Iterator[Figure]:
    labels = {"tokens_per_sec": ("Tokens per second", 1), "memory_bytes": ("Memory per device (MiB)", 2**20)}
    for (setting,), rows in split(analysis.rows("hardware"), "setting").items():
        for name, (label, unit) in labels.items():
            known = [row for row in rows if np.isfinite(row[name])]
            if len({row["batch_size"] for row in known}) < 2:
                continue
            axes = drawing.against_batch_size(label, known, name, analysis.runs.arms, scale=unit)
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
            drawing.count_axis(axes.yaxis, log=False)
            caption = f"{label} against batch size{analysis.in_setting(setting)}, medians over finished runs."
            yield Figure(f"{name}-{setting}", axes, caption, "hardware")


SECTION = Section(
    name="hardware",
    title="Memory and throughput",
    description="Medians over the finished runs, on the devices listed under Provenance.",
    tables=tables,
    figures=figures,
    empty=lambda analysis: "The figures need the throughput or memory of runs at two batch sizes.",
)
