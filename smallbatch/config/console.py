"""Make standard output and standard error tolerate failures, so that they never change the exit code."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO


class Tolerant:
    """A text stream that discards output once the underlying stream fails, as on a full disk or a closed pipe.

    All attributes except `write` and `flush` are those of the underlying stream.
    """

    def __init__(self, stream: TextIO, on_failure: Callable[[OSError], None]) -> None:
        self._stream, self._on_failure, self._failed = stream, on_failure, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if not self._failed:
            self._attempt(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self._failed:
            self._attempt(self._stream.flush)

    def _attempt(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except OSError as error:
            self._failed = True
            # Python flushes once more at exit; a failure there would give exit code 120.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            self._on_failure(error)


@contextlib.contextmanager
def tolerant_output() -> Iterator[None]:
    """Make sys.stdout and sys.stderr tolerate failures inside the context, and replace unencodable characters.

    A write failure of standard output is reported in one line on standard error. A closed pipe, as in `... | head`, and
    a failure of standard error are not reported.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        with contextlib.suppress(AttributeError, ValueError, OSError):  # None, or not a TextIOWrapper
            if stream.errors in ("strict", "surrogateescape"):
                stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]

    def report(error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            print(f"standard output failed ({error.strerror or error}); further output is discarded", file=sys.stderr)

    out, err = before
    if err is not None:
        sys.stderr = Tolerant(err, lambda error: None)
    if out is not None:
        sys.stdout = Tolerant(out, report)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Tolerant):
                stream.flush()
        sys.stdout, sys.stderr = before
