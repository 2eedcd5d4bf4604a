"""A process that trains one cell after another: JAX starts once, and what cells share is compiled once.

It reads {"id": CELL, "until_tokens": N or null} a line from stdin and answers {"id": CELL, "status": ...} on stdout.
When stdin closes, because the sweep ended or died, it saves what it is at and goes.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from smallbatch.grid.cells import Cell
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.grid.tasks import failure


def run_cell(directory: SweepDirectory, cell: Cell, until_tokens: int | None, keep_checkpoints: bool) -> str:
    """Train a missing cell, or go on with it, and return its status; "busy" where another process is at it."""
    from smallbatch.runs.run_dir import Locked
    from smallbatch.training import run

    with directory.claims.held(cell.id) as mine:
        if not mine:
            return "busy"
        status = directory.state(cell.id).status
        if status != "missing":  # it has ended, or was skipped, since the order was given
            return status
        try:
            result = run.train(cell.config, directory.cell(cell.id).path, until_tokens)
        except run.Interrupted as stop:
            result = stop.result
        except Locked:  # by the holder of the claim before: it was taken for dead, because its machine slept
            return "busy"
        print(f"{result.status} after {result.tokens:,} tokens", file=sys.stderr)
        if result.status != "stopped" and not keep_checkpoints:
            directory.drop_checkpoints(cell.id)
        return result.status


def attempt(directory: SweepDirectory, cell: Cell, until_tokens: int | None, keep_checkpoints: bool) -> dict:
    """Run a cell with all it says in its log; return {"id": ..., "status": ...}.

    status: what `run_cell` returns, or "failed", with "error" and whether to try "again".
    """
    answer: dict = {"id": cell.id}
    with _logged(directory.log(cell.id)):
        try:
            answer["status"] = run_cell(directory, cell, until_tokens, keep_checkpoints)
        except Exception as error:
            why, text = failure(error)
            answer |= why
            print(text, end="", file=sys.stderr)
    return answer


def main(path: str, cores: str, keep_checkpoints: bool) -> None:
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    directory = SweepDirectory(Path(path))
    cells = {cell.id: cell for cell in directory.read_grid()}
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints
    orders = _Orders()
    for order in orders:
        answer = attempt(directory, cells[order["id"]], order["until_tokens"], keep_checkpoints)
        print(json.dumps(answer), file=answers)


class _Orders:
    """The lines of stdin, read by a thread, so that its end is noticed in the middle of a cell."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def __iter__(self) -> Iterator[dict]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._ended)
                if not self._lines:
                    return
                line = self._lines.pop(0)
            yield json.loads(line)

    def _read(self) -> None:
        for line in sys.stdin:
            with self._changed:
                self._lines.append(line)
                self._changed.notify()
        with self._changed:
            self._ended, self._lines = True, []
            self._changed.notify()
        os.kill(os.getpid(), signal.SIGTERM)  # the trainer saves; between cells there is nothing to save


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Send what is printed to a file."""
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
