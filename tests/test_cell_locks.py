"""One process holds a cell at a time: a live holder keeps its lock, and the lock of a dead one is free."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import runs

from smallbatch.grid import cell_locks, worker
from smallbatch.grid.cell_locks import CellLocks
from smallbatch.grid.cells import enumerate_cells
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.runs import run_dir

home = runs.home


def lock_of_another_machine(path: Path, age_secs: float = 0.0) -> Path:
    """Write a lock whose last heartbeat was `age_secs` ago."""
    path.write_text(f"another machine\n{socket.gethostname()} {os.getpid()}\n")
    os.utime(path, (0, time.time() - age_secs))
    return path


def test_a_lock_has_one_holder_at_a_time(tmp_path):
    ours, theirs = CellLocks(tmp_path), CellLocks(tmp_path)
    with ours.held("a") as first:
        with theirs.held("a") as second:
            assert first and not second
        with theirs.held("b") as other:
            assert other and ours.holders() == {"a", "b"}
    with theirs.held("a") as free:
        assert free
    assert not ours.holders()


def test_a_process_that_is_killed_loses_its_lock_at_once(tmp_path):
    script = (
        "import sys, pathlib; from smallbatch.grid.cell_locks import CellLocks\n"
        "with CellLocks(pathlib.Path(sys.argv[1])).held('a') as held: print(held, flush=True); input()"
    )
    environment = os.environ | {"PYTHONPATH": str(runs.ROOT)}
    words = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "True\n"
        assert CellLocks(tmp_path).holders() == {"a"}
        holder.kill()
    assert (tmp_path / "a").exists() and not CellLocks(tmp_path).holders()
    with CellLocks(tmp_path).held("a") as held:
        assert held


def test_a_holder_on_this_machine_keeps_its_lock_without_heartbeats(tmp_path):
    with CellLocks(tmp_path).held("a"):
        os.utime(tmp_path / "a", (0, time.time() - 1000))  # as after the sleep of a laptop
        assert CellLocks(tmp_path).holders() == {"a"}


def test_a_lock_of_another_machine_lasts_as_long_as_its_heartbeat(tmp_path):
    path = lock_of_another_machine(tmp_path / "a", age_secs=60)
    with CellLocks(tmp_path).held("a") as held:
        assert not held and CellLocks(tmp_path).holders() == {"a"}
    os.utime(path, (0, time.time() - 100))
    assert not CellLocks(tmp_path).holders()
    with CellLocks(tmp_path).held("a") as held:
        assert held
    path.write_bytes(b"\xff")  # damaged
    assert CellLocks(tmp_path).holders() == {"a"}


def test_a_holder_updates_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(cell_locks, "HEARTBEAT_SECS", 0.01)
    with CellLocks(tmp_path).held("a"):
        os.utime(tmp_path / "a", (0, 0))
        deadline = time.monotonic() + 30
        while not (tmp_path / "a").stat().st_mtime and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "a").stat().st_mtime > time.time() - 60


def test_a_holder_leaves_a_lock_that_another_machine_took_over(tmp_path):
    with CellLocks(tmp_path).held("a"):
        (tmp_path / "a").unlink()
        theirs = lock_of_another_machine(tmp_path / "a")
    assert theirs.exists()


def test_holders_by_the_local_clock_writes_nothing(tmp_path):
    assert not CellLocks(tmp_path / "locks").holders(time.time()) and not os.listdir(tmp_path)
    lock_of_another_machine(tmp_path / "a")
    before = tmp_path.stat().st_mtime_ns
    assert CellLocks(tmp_path).holders(time.time()) == {"a"}
    assert tmp_path.stat().st_mtime_ns == before


def test_a_cell_whose_run_directory_is_locked_is_busy_and_not_failed(home, tmp_path):
    directory = SweepDirectory(tmp_path)
    (cell,) = enumerate_cells(runs.tiny_config(home, {}), ({"train.seed": 1},))
    with run_dir.locked(directory.cell(cell.id), cell.config):
        assert worker.attempt(directory, cell, None, keep_checkpoints=False) == {"id": cell.id, "status": "busy"}
    assert not directory.locks.holders()
