"""A cell is one process's at a time: a claim is left to the living, taken over from the dead, not lost by mistake."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import runs

from smallbatch.grid import cell_locks as claims
from smallbatch.grid import worker
from smallbatch.grid.cell_locks import CellLocks
from smallbatch.grid.cells import enumerate_cells
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.runs import run_dir as workdirs

home = runs.home


def write(path: Path, age_secs: float = 0.0, **changes) -> Path:
    """Write a claim of this process, changed, that was last kept fresh so long ago."""
    path.write_text(json.dumps(json.loads(claims._claim()) | changes))
    os.utime(path, (0, time.time() - age_secs))
    return path


def gone() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_claim_is_held_by_one_at_a_time(tmp_path):
    ours, theirs = CellLocks(tmp_path), CellLocks(tmp_path)
    with ours.held("a") as mine:
        with theirs.held("a") as second:
            assert mine and not second
        with theirs.held("b") as other:
            assert other and ours.holders() == {"a", "b"}
    with theirs.held("a") as free:
        assert free
    assert not ours.holders()


def test_a_claim_is_taken_over_from_a_process_of_this_machine_that_is_gone(tmp_path):
    write(tmp_path / "a", pid=gone())
    assert not CellLocks(tmp_path).holders()
    with CellLocks(tmp_path).held("a") as taken:
        assert taken


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only /proc tells when a process started")
def test_a_laptop_that_slept_does_not_lose_its_claims_and_a_process_number_is_no_process(tmp_path):
    write(tmp_path / "a", age_secs=1000)
    write(tmp_path / "b", started="1")  # the number was given to another process since
    assert CellLocks(tmp_path).holders() == {"a"}


def test_a_claim_of_another_machine_or_container_lasts_as_long_as_its_heartbeat(tmp_path):
    path = write(tmp_path / "a", age_secs=60, machine="another", pid=gone())
    assert CellLocks(tmp_path).holders() == {"a"}
    os.utime(path, (0, time.time() - 100))
    assert not CellLocks(tmp_path).holders()
    path.write_text("")
    assert CellLocks(tmp_path).holders() == {"a"}  # being written


def test_the_end_of_a_holder_leaves_the_claim_of_whoever_took_it_over(tmp_path):
    with CellLocks(tmp_path).held("a"):
        theirs = write(tmp_path / "a", machine="another")
    assert theirs.exists()


def test_a_claim_that_was_taken_over_and_given_back_is_taken_again(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_SECS", 0.01)
    with CellLocks(tmp_path).held("a"):
        (tmp_path / "a").unlink()
        deadline = time.monotonic() + 30
        while not (holders := CellLocks(tmp_path).holders()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert holders == {"a"}


def test_a_look_by_this_machines_clock_writes_nothing(tmp_path):
    assert not CellLocks(tmp_path / "claims").holders(time.time()) and not os.listdir(tmp_path)
    write(tmp_path / "a", machine="another")
    before = tmp_path.stat().st_mtime_ns
    assert CellLocks(tmp_path).holders(time.time()) == {"a"}
    assert tmp_path.stat().st_mtime_ns == before


def test_a_run_that_lost_its_claim_but_lives_makes_its_cell_busy_and_not_failed(home, tmp_path):
    directory = SweepDirectory(tmp_path)
    (cell,) = enumerate_cells(runs.tiny_config(home, {}), ({"train.seed": 1},))
    with workdirs.locked(directory.cell(cell.id), cell.config):
        assert worker.attempt(directory, cell, None, keep_checkpoints=False) == {"id": cell.id, "status": "busy"}
    assert not directory.claims.holders()
