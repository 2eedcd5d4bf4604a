"""Memory and throughput per batch size and arm, from what the runs recorded.

One idea: the best batch size is a matter of loss per second as much as per FLOP; this is the exchange rate of the
machine that the runs were on, and of no other.
"""

import numpy as np

from smallbatch.analysis.read.run_table import Run, RunTable
from smallbatch.analysis.report.tables import Row


def hardware(table: RunTable) -> list[Row]:
    """Return medians over the finished runs of each arm and batch size."""
    rows: list[Row] = []
    for group in table.groups:
        runs = [run for run in group.all_runs() if run.status == "done"]
        tokens_per_sec = _median(runs, "tokens_per_sec")
        flops_per_token = _median(runs, "flops") / _median(runs, "tokens") if runs else np.nan
        row: Row = {
            "setting": group.setting,
            "arm": group.arm,
            "batch_size": group.batch_size,
            "runs": len(runs),
            "tokens_per_sec": tokens_per_sec,
            "flops_per_sec": tokens_per_sec * flops_per_token,
            "run_secs": _median(runs, "secs"),
            "memory_bytes": _memory_bytes(runs),
            "params": _median(runs, "params"),
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
