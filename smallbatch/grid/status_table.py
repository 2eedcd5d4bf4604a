"""The status of a sweep: a table with one row per batch size, and a line of progress."""

import math
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import TextIO

from smallbatch.grid.axes import BATCH_SIZE
from smallbatch.grid.cells import Cell
from smallbatch.grid.cost import TimeLeft, time_text
from smallbatch.grid.sweep_dir import State
from smallbatch.runs.progress import NotebookLine, in_notebook

STATUSES = ("done", "running", "diverged", "failed", "cut", "skipped", "missing")
LINE_EVERY_SECS, NOTEBOOK_EVERY_SECS, LIVE_EVERY_SECS = 30.0, 2.0, 0.9


def table_text(cells: list[Cell], states: dict[str, State], running: set[str]) -> str:
    """Return the number of cells by status and the best loss so far, for each batch size."""
    head = ["batch", *STATUSES, "best loss", "at"]
    table = [head]
    for size in dict.fromkeys(cell.flat[BATCH_SIZE] for cell in cells):
        group = [cell for cell in cells if cell.flat[BATCH_SIZE] == size]
        counts = Counter("running" if cell.id in running else states[cell.id].status for cell in group)
        best = min(group, key=lambda cell: _loss(states[cell.id]))
        loss = _loss(states[best.id])
        found = [f"{loss:.4f}", best.name_without(BATCH_SIZE)] if math.isfinite(loss) else ["", ""]
        table.append([f"{size:,}", *(str(counts[status] or "") for status in STATUSES), *found])
    columns = [column for column in zip(*table, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    align = lambda column: [word.ljust if column[0] == "at" else word.rjust for word in column]
    aligned = [[pad(width) for pad in align(column)] for column, width in zip(columns, widths, strict=True)]
    return "\n".join("  ".join(row).rstrip() for row in zip(*aligned, strict=True))


def _loss(state: State) -> float:
    return state.validation_loss_nats if state.status == "done" and state.validation_loss_nats is not None else math.inf


class StatusDisplay:
    """Shows a running sweep: a live table on a terminal, a line that is rewritten in a notebook, lines elsewhere."""

    def __init__(self, cells: list[Cell], stream: TextIO | None = None):
        self._cells = cells
        self._stream = sys.stderr if stream is None else stream
        self._first: tuple[float, float] | None = None  # (time, tokens) when training started
        self._shown = -math.inf
        self._live = None
        self._line = NotebookLine(self._stream) if in_notebook(self._stream) else None

    def __enter__(self) -> "StatusDisplay":
        with suppress(OSError, ValueError, AttributeError):
            if self._stream.isatty():
                from rich.console import Console
                from rich.live import Live

                self._live = Live(console=Console(file=self._stream), auto_refresh=False, transient=True)
                self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, ValueError):
            if self._live:
                self._live.stop()
            if self._line:
                self._line.end()

    @property
    def is_due(self) -> bool:
        """Return whether it is time for `show`."""
        every_secs = LIVE_EVERY_SECS if self._live else NOTEBOOK_EVERY_SECS if self._line else LINE_EVERY_SECS
        return time.monotonic() - self._shown >= every_secs

    def show(
        self, states: dict[str, State], running: set[str], done_tokens: int, total_tokens: int, left: TimeLeft | None
    ) -> None:
        """Show the current state."""
        self._shown = now = time.monotonic()
        if self._first is None or done_tokens <= self._first[1]:  # workers still start and compile
            self._first = (now, done_tokens)
        started, first_tokens = self._first
        ended = sum(states[cell.id].status != "missing" for cell in self._cells)
        share = done_tokens / max(total_tokens, 1)
        line = f"sweep  {ended:,} of {len(self._cells):,} cells, {share:.0%} of the tokens"
        if done_tokens > first_tokens:
            line += f"  {(done_tokens - first_tokens) / (now - started):,.0f} tokens/s"
            line += "" if left is None else f"  left: {time_text(left)}"
        with suppress(OSError, ValueError):
            if self._live:
                from rich.text import Text

                self._live.update(Text(f"{table_text(self._cells, states, running)}\n{line}"), refresh=True)
            elif self._line:
                self._line.show(line)
            else:
                print(line, file=self._stream, flush=True)
