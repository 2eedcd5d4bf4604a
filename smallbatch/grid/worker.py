"""A worker process: it trains one cell after another, so JAX starts once and shared programs are compiled once.

It reads one JSON object per line from stdin, {"id": CELL, "until_tokens": N or null}, and writes one outcome per line
to stdout. When stdin closes, because the sweep ended or died, it saves the current cell and exits.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from smallbatch.grid.cells import Cell
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.grid.tasks import failure


def run_cell(directory: SweepDirectory, cell: Cell, until_tokens: int | None, keep_checkpoints: bool) -> str:
    """Train or resume a missing cell and return its status; "busy" if another process holds it."""
    from smallbatch.runs.run_dir import Locked
    from smallbatch.training import run

    with directory.locks.held(cell.id) as is_ours:
        if not is_ours:
            return "busy"
        status = directory.state(cell.id).status
        if status != "missing":  # it has ended, or was skipped, since the task was created
            return status
        try:
            result = run.train(cell.config, directory.cell(cell.id).path, until_tokens)
        except run.Interrupted as stop:
            result = stop.result
        except Locked:  # an earlier holder still runs: its lock went stale while its machine slept
            return "busy"
        print(f"{result.status} after {result.tokens:,} tokens", file=sys.stderr)
        if result.status != "stopped" and not keep_checkpoints:
            directory.delete_checkpoints(cell.id)
        return result.status


def attempt(directory: SweepDirectory, cell: Cell, until_tokens: int | None, keep_checkpoints: bool) -> dict:
    """Run a cell with its output in its log; return {"id": ..., "status": ...}.

    status: the value of `run_cell`; or "failed", with "error", and "again": whether to retry.
    """
    outcome: dict = {"id": cell.id}
    with _output_to(directory.log(cell.id)):
        try:
            outcome["status"] = run_cell(directory, cell, until_tokens, keep_checkpoints)
        except Exception as error:
            failed, text = failure(error)
            outcome |= failed
            print(text, end="", file=sys.stderr)
    return outcome


def main(path: str, cores: str, keep_checkpoints: bool) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    directory = SweepDirectory(Path(path))
    cells = {cell.id: cell for cell in directory.read_grid()}
    outcomes = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # other output goes to stderr
    tasks: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
    threading.Thread(target=_read_tasks, args=(tasks,), daemon=True).start()
    while (task := tasks.get()) is not None:
        print(json.dumps(attempt(directory, cells[task["id"]], task["until_tokens"], keep_checkpoints)), file=outcomes)


def _read_tasks(tasks: queue.SimpleQueue) -> None:
    """Read stdin in a thread, so that its end interrupts the current cell."""
    for line in sys.stdin:
        tasks.put(json.loads(line))
    tasks.put(None)
    os.kill(os.getpid(), signal.SIGTERM)  # the trainer saves; between cells there is nothing to save


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Append stdout and stderr to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(log, 2)
        os.dup2(log, 1)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.dup2(before, 1)
        os.close(log)
        os.close(before)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "keep")
