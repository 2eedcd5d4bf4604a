"""A stop that is asked for from outside, by SIGTERM or Ctrl-C, and granted where nothing is lost."""

import contextlib
import signal

AGAIN = 75  # exit code of what was stopped by a notice: start it again (sysexits.h: EX_TEMPFAIL)


class Stop:
    """SIGTERM and Ctrl-C ask for a stop at the next edge; a second Ctrl-C stops at once.

    Inside another Stop, a stop that was asked for there is asked for here.
    """

    def __init__(self) -> None:
        self.requested = False
        self.notice: str | None = None  # who asked from within, if that is why

    def __enter__(self) -> "Stop":
        self._before = {}
        for name in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not the main thread: signals are handled there
                self._before[name] = signal.signal(name, self._on_signal)
        outer = [getattr(handler, "__self__", None) for handler in self._before.values()]
        self.requested |= any(isinstance(stop, Stop) and stop.requested for stop in outer)
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def ask(self, notice: str) -> None:
        """Ask for a stop from within, from any thread, and say why."""
        self.notice = self.notice or notice
        self.requested = True

    def _on_signal(self, number: int, frame: object) -> None:
        del frame
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
