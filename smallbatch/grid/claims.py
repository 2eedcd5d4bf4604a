"""Who runs a cell: a claim file with a heartbeat, so that sweeps on one directory share its cells and none runs twice.

A claim lies in WORKDIR/claims, on a file system that all machines see. It is stale when its process is gone, or when
its heartbeat has stopped; then anyone may take it over.
"""

import contextlib
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from smallbatch.data.locks import locked

HEARTBEAT_SECS = 10.0
STALE_SECS = 90.0


class Claims:
    """The claims of a sweep directory."""

    def __init__(self, directory: Path):
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def held(self, cell_id: str) -> Iterator[bool]:
        """Hold a cell's claim and keep it fresh; gives False, and holds nothing, where another process has it."""
        path = self._directory / cell_id
        with locked(self._directory / ".lock"):  # two that find a stale claim must not both take it over
            free = not path.exists() or self.is_stale(cell_id)
            if free:
                path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        if not free:
            yield False
            return
        stop = threading.Event()
        thread = threading.Thread(target=_beat, args=(path, stop), daemon=True)
        thread.start()
        try:
            yield True
        finally:
            stop.set()
            thread.join()
            path.unlink(missing_ok=True)

    def holders(self) -> set[str]:
        """Return the cells that somebody is at work on."""
        names = [path.name for path in self._directory.iterdir() if not path.name.startswith(".")]
        return {name for name in names if not self.is_stale(name)}

    def is_stale(self, cell_id: str) -> bool:
        """Tell whether the holder of a claim is gone."""
        path = self._directory / cell_id
        try:
            age_secs = self._now() - path.stat().st_mtime
            holder = json.loads(path.read_text())
        except FileNotFoundError:
            return True
        except ValueError:  # cut short by a crash, or not written yet
            return age_secs > HEARTBEAT_SECS
        if holder["host"] == socket.gethostname() and not _alive(holder["pid"]):
            return True
        return age_secs > STALE_SECS

    def _now(self) -> float:
        """Return the time by the clock that stamps files here, which may be another machine's."""
        with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".now") as file:
            return os.fstat(file.fileno()).st_mtime


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECS):
        with contextlib.suppress(OSError):
            os.utime(path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
