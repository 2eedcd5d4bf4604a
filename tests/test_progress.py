"""Progress: lines in a log, a bar on a terminal, one line in a notebook."""

import contextlib
import io
import os
import pty
import types

import pytest

from smallbatch.runs.progress import Progress, format_bytes, format_count, format_secs


def test_short_loop_prints_nothing_to_a_log():
    stream = io.StringIO()
    with Progress("train", 100, stream=stream) as progress:
        for done in range(101):
            progress.update(done)
    assert stream.getvalue() == ""


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `sleep` advances."""

    class Clock:
        now = 100.0

        def sleep(self, secs: float) -> None:
            self.now += secs

    found = Clock()
    monkeypatch.setattr("smallbatch.runs.progress.time", types.SimpleNamespace(monotonic=lambda: found.now))
    return found


def test_log_lines_have_percentage_fields_rate_and_time_left(clock):
    stream = io.StringIO()
    with Progress("train", 2_000_000, stream=stream, every_secs=0) as progress:
        progress.update(500_000, loss="3.21")
        clock.sleep(0.05)
        progress.update(1_000_000, loss="2.91", mfu="41%")
        progress.update(2_000_000, loss="2.50")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train   25%  500k/2.00M tokens  loss 3.21"
    assert lines[1] == "train   50%  1.00M/2.00M tokens  loss 2.91  mfu 41%  10.0M tokens/s  0.1s left"
    assert lines[-1] == "train  100%  2.00M/2.00M tokens  loss 2.50  30.0M tokens/s"


def test_rate_starts_at_the_first_update(clock):
    stream = io.StringIO()
    with Progress("train", None, stream=stream, every_secs=0) as progress:
        progress.update(1e12)  # resumed far into a run
        clock.sleep(0.25)
        progress.update(1e12 + 100)
    assert stream.getvalue().endswith("  400 tokens/s\n")


def test_lines_are_every_secs_apart_and_the_last_state_is_printed(clock):
    stream = io.StringIO()
    with Progress("prepare", None, unit="bytes", stream=stream, every_secs=8) as progress:
        for done in range(20):
            progress.update(done)
            clock.sleep(1)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["8", "16", "19"]


def test_closed_stream_is_ignored():
    stream = io.StringIO()
    with Progress("train", 10, stream=stream, every_secs=0) as progress:
        progress.update(1)
        stream.close()
        progress.update(2)
    with Progress("train", 10, stream=stream, every_secs=0) as progress:
        progress.update(1)


def test_notebook_shows_one_changing_line():
    class OutStream(io.StringIO):  # like the sys.stderr of a kernel; tests/test_colab.py uses a real one
        __module__ = "ipykernel.iostream"

    stream = OutStream()
    with Progress("train", 200, stream=stream) as progress:
        progress.log("validating ...")
        progress.update(200, loss="3.2")
    longer, shorter = "train    0%  0/200 tokens  validating ...", "train  100%  200/200 tokens  loss 3.2"
    assert stream.getvalue() == f"\r{longer}\r{shorter.ljust(len(longer))}\n"


def read_to_the_end(terminal_fd: int) -> bytes:
    """Return what a closed terminal received. The kernel returns it in parts, and then an I/O error."""
    shown = b""
    with contextlib.suppress(OSError):
        while part := os.read(terminal_fd, 100_000):
            shown += part
    os.close(terminal_fd)
    return shown


def test_terminal_shows_a_bar():
    parent, child = pty.openpty()
    with os.fdopen(child, "w") as terminal, Progress("train", 200, stream=terminal) as progress:
        progress.update(50, loss="3.21")
        progress.update(200, loss="[bold]")
    shown = read_to_the_end(parent).decode()
    assert "━" in shown and "100%  200/200 tokens  loss [bold]" in shown


@pytest.mark.parametrize(
    ("count", "written"),
    [(0, "0"), (7, "7"), (999, "999"), (3.21, "3.21"), (31.26, "31.3"), (1000, "1.00k"), (20_100, "20.1k"),
     (999_949, "1.00M"), (999_400, "999k"), (1_234_567, "1.23M"), (2**31, "2.15B"), (3e13, "30.0T"),
     (2e18, "2.00e+18"), (-1500, "-1.50k"), (0.5, "0.50")],
)  # fmt: skip
def test_counts_have_three_digits(count, written):
    assert format_count(count) == written


@pytest.mark.parametrize(
    ("secs", "written"),
    [(0.04, "0.0s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"), (59.6, "1m00s"), (72, "1m12s"),
     (3725, "1h02m"), (90_000, "1d01h")],
)  # fmt: skip
def test_durations_have_two_units(secs, written):
    assert format_secs(secs) == written


@pytest.mark.parametrize(
    ("size_bytes", "written"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.00 KiB"), (1536, "1.50 KiB"), (2**30 - 1, "1.00 GiB"),
     (17 * 2**40, "17.0 TiB")],
)  # fmt: skip
def test_sizes_are_in_powers_of_1024(size_bytes, written):
    assert format_bytes(size_bytes) == written
