"""Lock a cell while it runs, so that several sweep commands can share a directory and no cell runs twice.

A lock is a file in WORKDIR/locks. Its holder takes a kernel lock (flock) on the file and keeps updating the file's
modification time. The kernel releases the lock when the process exits. Processes on the same machine test the kernel
lock. On other machines it may be invisible, so they test the modification time: a lock older than STALE_SECS is free.
"""

import contextlib
import fcntl
import functools
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from smallbatch.files.locks import locked

HEARTBEAT_SECS = 10.0
STALE_SECS = 90.0


class CellLocks:
    """The locks in a directory, one file per locked cell."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._guard = directory / ".lock"  # held while a lock changes hands

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """Hold a lock; yield False, without holding it, if another process does."""
        self._directory.mkdir(parents=True, exist_ok=True)
        path, stop = self._directory / name, threading.Event()
        with contextlib.ExitStack() as stack:
            with locked(self._guard):
                is_free = not _is_held(path, self._now())
                if is_free:
                    path.unlink(missing_ok=True)  # stale; a holder that is still alive keeps the old inode
                    file = stack.enter_context(path.open("x"))
                    fcntl.flock(file, fcntl.LOCK_EX)
                    file.write(f"{_machine()}\n{socket.gethostname()} {os.getpid()}\n")
                    file.flush()
            if not is_free:
                yield False
                return
            heartbeat = threading.Thread(target=_heartbeat, args=(file.fileno(), stop), daemon=True)
            heartbeat.start()
            try:
                yield True
            finally:
                stop.set()
                heartbeat.join()
                with locked(self._guard), contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(path.stat(), os.fstat(file.fileno())):  # not taken over by another process
                        path.unlink()

    def holders(self, now: float | None = None) -> set[str]:
        """Return the names of the locks that are held.

        now: time by the clock of the file system. None reads that clock, which writes a file.
        """
        if not self._directory.is_dir():
            return set()
        now = self._now() if now is None else now
        paths = [path for path in self._directory.iterdir() if not path.name.startswith(".")]
        return {path.name for path in paths if _is_held(path, now)}

    def _now(self) -> float:
        """Return the time by the clock of the file system, which may be another machine's."""
        self._guard.touch()
        return self._guard.stat().st_mtime


def _is_held(path: Path, now: float) -> bool:
    try:
        with path.open(errors="replace") as file:
            if file.readline().strip() != _machine():
                return now - os.fstat(file.fileno()).st_mtime <= STALE_SECS
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


def _heartbeat(file: int, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECS):
        with contextlib.suppress(OSError):
            os.utime(file)


@functools.cache
def _machine() -> str:
    """Return an id of this boot of this machine, or of this container: containers may not share kernel locks."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()
