"""Make standard output and standard error tolerate failures, so that they never change the exit code."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO


class _TolerantStream:
    """A text stream that discards output once the underlying stream fails, as on a full disk or a closed pipe."""

    def __init__(self, stream: TextIO, report: bool) -> None:
        self._stream, self._report, self._failed = stream, report, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, call: Callable[[], Any]) -> None:
        if self._failed:
            return
        try:
            call()
        except OSError as error:
            self._failed = True
            # Python flushes once more at exit; a failure there would give exit code 120.
            with contextlib.suppress(OSError, ValueError, AttributeError), open(os.devnull, "w") as discarded:
                os.dup2(discarded.fileno(), self._stream.fileno())
            if self._report and not isinstance(error, BrokenPipeError):  # a closed pipe is normal, as in `... | head`
                reason = error.strerror or error
                print(f"standard output failed ({reason}); further output is discarded", file=sys.stderr)


@contextlib.contextmanager
def tolerant_output() -> Iterator[None]:
    """Make sys.stdout and sys.stderr tolerate failures inside the context, and replace unencodable characters.

    The first failure of standard output is reported in one line on standard error, unless it is a closed pipe.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        with contextlib.suppress(AttributeError, ValueError, OSError):  # None, or not a TextIOWrapper
            if stream.errors in ("strict", "surrogateescape"):
                stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    sys.stdout = sys.stdout and _TolerantStream(sys.stdout, report=True)
    sys.stderr = sys.stderr and _TolerantStream(sys.stderr, report=False)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
