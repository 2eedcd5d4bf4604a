"""Who runs a cell: a claim file with a heartbeat, so that sweeps on one directory share its cells and none runs twice.

A claim lies in WORKDIR/claims, on a file system that all machines see. It is stale when its process is gone, as its own
machine can tell, or, as others can tell, when its heartbeat has stopped; then anyone may take it over.
"""

import contextlib
import functools
import json
import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from smallbatch.files import json_files
from smallbatch.files.locks import locked

HEARTBEAT_SECS = 10.0
STALE_SECS = 90.0
CLAIM = {"host": str, "machine": str, "pid": int, "started": str | None, "token": str}


class CellLocks:
    """The claims of a sweep directory."""

    def __init__(self, directory: Path):
        self._directory = directory

    @contextlib.contextmanager
    def held(self, cell_id: str) -> Iterator[bool]:
        """Hold a cell's claim and keep it fresh; gives False, and holds nothing, where another process has it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        path, ours, stop = self._directory / cell_id, _claim(), threading.Event()
        beat = threading.Thread(target=_beat, args=(path, ours, stop), daemon=True)
        try:
            with self._alone():
                mine = not path.exists() or self._is_stale(cell_id, self._now())
                if mine:
                    path.write_text(ours)
            if mine:
                beat.start()
            yield mine
        finally:
            stop.set()
            if beat.ident is not None:
                beat.join()
            with self._alone():
                if _read(path) == ours:  # and not of another, who has taken it over
                    path.unlink()

    def holders(self, now: float | None = None) -> set[str]:
        """Return the cells that somebody is at work on.

        now: by the clock that stamps files there; None: a file is written to learn it.
        """
        if not self._directory.is_dir():
            return set()
        now = self._now() if now is None else now
        names = [path.name for path in self._directory.iterdir() if not path.name.startswith(".")]
        return {name for name in names if not self._is_stale(name, now)}

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep others from changing whose claim is whose: two must not both take over one that is stale."""
        return locked(self._directory / ".lock")

    def _is_stale(self, cell_id: str, now: float) -> bool:
        """Tell whether the holder of a claim is gone."""
        path = self._directory / cell_id
        try:
            age_secs = now - path.stat().st_mtime
            holder = json_files.parse(path.read_bytes())
        except FileNotFoundError:
            return True
        except ValueError:
            holder = {}
        if json_files.mismatch(holder, CLAIM):  # damaged, truncated by a crash, or not written yet
            return age_secs > HEARTBEAT_SECS
        if holder["machine"] == _machine():
            started = _started(holder["pid"])
            if started != "":  # known: that it lives, too, even if a laptop that slept has kept it from saying so
                return started != holder["started"]
        return age_secs > STALE_SECS

    def _now(self) -> float:
        """Return the time by the clock that stamps files here, which may be another machine's."""
        with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".now") as file:
            return os.fstat(file.fileno()).st_mtime


def _claim() -> str:
    """Return a claim of this process that is like no other."""
    pid = os.getpid()
    claim = {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "started": _started(pid)}
    return json.dumps(claim | {"token": uuid.uuid4().hex})


def _beat(path: Path, ours: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECS):
        with contextlib.suppress(OSError):
            found = _read(path)
            if found == ours:
                os.utime(path)
            elif found is None:  # taken over while this machine slept, and given back: the run is locked
                with path.open("x") as file:
                    file.write(ours)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None


@functools.cache
def _machine() -> str:
    """Name what counts processes as this one does: a boot of a machine, or a container; the host if that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """Return when a process started, "" if the system does not tell, None if it is gone: numbers are given again."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    try:
        state, *more = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else more[18]
    except OSError:
        return ""
