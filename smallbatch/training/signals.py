"""Requests to stop: SIGTERM, Ctrl-C, or a preemption notice. The training loop saves and stops at its next record."""

import contextlib
import signal

EXIT_RESTART = 75  # exit code after a preemption notice: run the command again (EX_TEMPFAIL in sysexits.h)


class Stop:
    """Record a request to stop while the context is active. A second Ctrl-C raises KeyboardInterrupt at once.

    A request that an enclosing Stop has received also counts in a nested one.
    """

    def __init__(self) -> None:
        self.requested = False
        self.notice: str | None = None  # the reason, if `request` was called

    def __enter__(self) -> "Stop":
        self._previous = {}
        for name in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # signal handlers can be set in the main thread only
                self._previous[name] = signal.signal(name, self._on_signal)
        enclosing = [getattr(handler, "__self__", None) for handler in self._previous.values()]
        self.requested |= any(isinstance(stop, Stop) and stop.requested for stop in enclosing)
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def request(self, notice: str) -> None:
        """Request a stop from within the program, from any thread. notice: the reason."""
        self.notice = self.notice or notice
        self.requested = True

    def _on_signal(self, number: int, frame: object) -> None:
        del frame
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
