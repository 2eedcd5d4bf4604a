"""Progress of a loop: a bar on a terminal, one changing line in a notebook, an occasional line in a log file.

Also the formats of counts, durations and sizes.
"""

import math
import sys
import time
from contextlib import suppress
from typing import TextIO

REFRESH_SECS = 0.1
NOTEBOOK_SECS = 1.0  # every line is a message to the browser


class Progress:
    """Show the progress of a loop: `with Progress("train", total) as p: p.update(done, loss="3.21")`.

    The rate is measured from the first update, so it excludes compilation and work of an earlier session. Errors of
    the stream are ignored.

    Args:
        total: number of units, or None if unknown.
        stream: default stderr.
        every_secs: interval between lines in a log file.
    """

    def __init__(
        self,
        title: str,
        total: float | None,
        unit: str = "tokens",
        stream: TextIO | None = None,
        every_secs: float = 10.0,
    ) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._stream = sys.stderr if stream is None else stream
        self._every_secs = every_secs
        self._done, self._fields = 0.0, {}
        self._first: tuple[float, float] | None = None  # (time, done) of the first update
        self._shown_secs = time.monotonic()
        self._shown_line: str | None = None
        self._bar = None
        self._line = NotebookLine(self._stream) if in_notebook(self._stream) else None

    def __enter__(self) -> "Progress":
        with suppress(OSError, ValueError, AttributeError):
            if self._stream.isatty():
                self._bar = _terminal_bar(self._title, self._total, self._stream)
                self._bar.start()
                self._every_secs = REFRESH_SECS
            elif self._line:
                self._every_secs = NOTEBOOK_SECS
        return self

    def update(self, done: float, **fields: str) -> None:
        """Show that `done` units, counted from 0, are finished. fields: texts to show beside the count."""
        now = time.monotonic()
        self._done, self._fields = done, fields
        if self._first is None:
            self._first = (now, done)
        if now - self._shown_secs >= self._every_secs:
            self._shown_secs = now
            self._show(self._status(now))

    def log(self, text: str) -> None:
        """Show a line at once, such as the start of a validation."""
        self._show(f"{self._status(time.monotonic())}  {text}")

    def __exit__(self, *_: object) -> None:
        line = self._status(time.monotonic())
        if self._bar or (self._shown_line is not None and line != self._shown_line):
            self._show(line)
        if self._bar:
            with suppress(OSError, ValueError):
                self._bar.stop()
        if self._line:
            self._line.end()

    def _status(self, now: float) -> str:
        parts = []
        if self._total:
            parts.append(f"{100 * self._done / self._total:3.0f}%")
            parts.append(f"{format_count(self._done)}/{format_count(self._total)} {self._unit}")
        else:
            parts.append(f"{format_count(self._done)} {self._unit}")
        parts += [f"{name.replace('_', ' ')} {value}" for name, value in self._fields.items()]
        if self._first and now > self._first[0] and self._done > self._first[1]:
            rate = (self._done - self._first[1]) / (now - self._first[0])
            parts.append(f"{format_count(rate)} {self._unit}/s")
            if self._total and self._done < self._total:
                parts.append(f"{format_secs((self._total - self._done) / rate)} left")
        return "  ".join(parts)

    def _show(self, line: str) -> None:
        self._shown_line = line
        with suppress(OSError, ValueError, AttributeError):
            if self._bar:
                self._bar.update(self._bar.task_ids[0], completed=self._done, line=line, refresh=True)
            elif self._line:
                self._line.show(f"{self._title}  {line}")
            else:
                self._stream.write(f"{self._title}  {line}\n")
                self._stream.flush()


def log(text: str) -> None:
    """Print a line to stderr. Errors of the stream are ignored."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def in_notebook(stream: TextIO) -> bool:
    """Return whether a stream writes to a notebook cell (Jupyter, Colab, VS Code)."""
    return type(stream).__module__.partition(".")[0] == "ipykernel"


class NotebookLine:
    """One line under a notebook cell; each new text replaces the previous one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._width = 0

    def show(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width))  # spaces overwrite a longer previous text
        self._stream.flush()
        self._width = len(text)

    def end(self) -> None:
        """Start a new line."""
        if self._width:
            self._stream.write("\n")
            self._stream.flush()
        self._width = 0


def _terminal_bar(title: str, total: float | None, stream: TextIO):
    from rich import progress
    from rich.console import Console

    bar = progress.Progress(
        progress.TextColumn(title, markup=False),
        progress.BarColumn(bar_width=24),
        progress.TextColumn("{task.fields[line]}", markup=False),
        console=Console(file=stream),
        auto_refresh=False,  # without a thread, which could raise on a closed stream
        redirect_stdout=sys.stdout.isatty(),  # piped results do not go through the bar
    )
    bar.add_task(title, total=total, line="")
    return bar


def format_count(count: float) -> str:
    """Format a count with three digits and a suffix: 1234567 -> '1.23M', 20100 -> '20.1k', 512 -> '512'."""
    for scale, suffix in ((1, ""), (1e3, "k"), (1e6, "M"), (1e9, "B"), (1e12, "T")):
        scaled = count / scale
        if abs(float(f"{scaled:.3g}")) < 1000:  # 999,999 rounds to 1.00M, not to 1000k
            return f"{_three_digits(scaled, whole=scale == 1 and count == int(count))}{suffix}"
    return f"{count:.2e}"


def _three_digits(value: float, whole: bool) -> str:
    decimals = 0 if whole or value == 0 else min(2, max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}"))))))
    return f"{value:.{decimals}f}"


def format_secs(secs: float) -> str:
    """Format a duration in its two largest units: 72 -> '1m12s', 3725 -> '1h02m', 0.5 -> '0.5s'."""
    if secs < 9.95:
        return f"{secs:.1f}s"
    whole = round(secs)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def format_bytes(size_bytes: float) -> str:
    """Format a size in powers of 1,024: 1536 -> '1.50 KiB'."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1023.5:
            return f"{size_bytes:.0f} bytes" if unit == "bytes" else f"{_three_digits(size_bytes, False)} {unit}"
        size_bytes /= 1024
    return f"{_three_digits(size_bytes, False)} TiB"
