"""How a sweep stands, for people: a table by batch size, redrawn on a terminal; a line elsewhere, now and then, or one
that changes in a notebook.
"""

import math
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import TextIO

from smallbatch.grid.axes import BATCH_SIZE
from smallbatch.grid.cells import Cell
from smallbatch.grid.sweep_dir import State
from smallbatch.grid.time_left import TimeLeft, time_text
from smallbatch.runs.progress import NotebookLine, in_notebook

COLUMNS = ("done", "running", "diverged", "failed", "cut", "skipped", "missing")
LINE_EVERY_SECS = 30.0
LIVE_EVERY_SECS = 0.9
NOTEBOOK_EVERY_SECS = 2.0


def rows(cells: list[Cell], states: dict[str, State], running: set[str]) -> list[list[str]]:
    """Return a row for each batch size: how many cells are in which state, the best loss so far and where it is."""
    table = []
    for size in dict.fromkeys(cell.flat[BATCH_SIZE] for cell in cells):
        of_size = [cell for cell in cells if cell.flat[BATCH_SIZE] == size]
        counts = Counter("running" if cell.id in running else states[cell.id].status for cell in of_size)
        best = min(of_size, key=lambda cell: _loss(states[cell.id]))
        loss = _loss(states[best.id])
        found = [f"{loss:.4f}", best.name_without(BATCH_SIZE)] if math.isfinite(loss) else ["", ""]
        table.append([f"{size:,}", *(str(counts[name] or "") for name in COLUMNS), *found])
    return table


def text(cells: list[Cell], states: dict[str, State], running: set[str]) -> str:
    """Return the table as plain text."""
    head = ["batch", *COLUMNS, "best loss", "at"]
    table = rows(cells, states, running)
    used = [i for i in range(len(head)) if i == 0 or any(row[i] for row in table)]
    lines = [[row[i] for i in used] for row in [head, *table]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(used))]
    align = lambda word, width, i: word.ljust(width) if used[i] == len(head) - 1 else word.rjust(width)
    return "\n".join("  ".join(align(w, widths[i], i) for i, w in enumerate(line)).rstrip() for line in lines)


class Board:
    """Shows a sweep while it runs."""

    def __init__(self, cells: list[Cell], stream: TextIO | None = None):
        self._cells = cells
        self._stream = sys.stderr if stream is None else stream
        self._started = time.monotonic()
        self._first: float | None = None  # tokens that were there when it started
        self._shown = -math.inf
        self._live = None
        self._line = NotebookLine(self._stream) if in_notebook(self._stream) else None

    def __enter__(self) -> "Board":
        with suppress(OSError, ValueError, AttributeError):
            if self._stream.isatty():
                from rich.console import Console
                from rich.live import Live

                self._live = Live(console=Console(file=self._stream), auto_refresh=False, transient=True)
                self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            with suppress(OSError, ValueError):
                self._live.stop()
        if self._line:
            self._line.end()

    @property
    def is_due(self) -> bool:
        """Tell whether it is time to show it again."""
        every_secs = LIVE_EVERY_SECS if self._live else NOTEBOOK_EVERY_SECS if self._line else LINE_EVERY_SECS
        return time.monotonic() - self._shown >= every_secs

    def show(
        self,
        states: dict[str, State],
        running: set[str],
        done_tokens: float,
        total_tokens: float,
        time_left: TimeLeft | None,
    ) -> None:
        """Show it again."""
        self._shown = now = time.monotonic()
        if self._first is None or done_tokens <= self._first:  # so far workers start and compile
            self._first, self._started = done_tokens, now
        left = ""
        if done_tokens > self._first:
            rate = (done_tokens - self._first) / (now - self._started)
            left = f"  {rate:,.0f} tokens/s" + ("" if time_left is None else f"  left: {time_text(time_left)}")
        ended = sum(states[cell.id].status != "missing" for cell in self._cells)
        share = done_tokens / max(total_tokens, 1)
        line = f"sweep  {ended:,} of {len(self._cells):,} cells, {share:.0%} of the tokens{left}"
        with suppress(OSError, ValueError):
            if self._live:
                from rich.text import Text

                self._live.update(Text(f"{text(self._cells, states, running)}\n{line}"), refresh=True)
            elif self._line:
                self._line.show(line)
            else:
                self._stream.write(line + "\n")
                self._stream.flush()


def _loss(state: State) -> float:
    return state.validation_loss_nats if state.status == "done" and state.validation_loss_nats is not None else math.inf
