"""A sweep that is killed, stopped or shared ends with the results of an undisturbed sweep."""

import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import runs

from smallbatch.config import files as config_files
from smallbatch.files import json_files
from smallbatch.grid import command
from smallbatch.grid.cells import enumerate_cells
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.runs import records

pytestmark = pytest.mark.slow

home = runs.home

GRID = """
from smallbatch import config
from smallbatch.grid import axis, chain, point, product

def get_config():
    c = config.quickstart()
    for key, value in {settings}.items():
        section, _, name = key.partition(".")
        c[section][name] = value
    return c

def get_grid():
    return {grid}
"""
SIX = 'product(axis("train.batch_size", [1, 4]), axis("optimizer.peak_lr", [0.001, 0.01, 1e5]))'
SHORT = {"mesh.data": None, "mesh.tensor": None, "train.steps_per_dispatch": None}


def grid_file(home: Path, path: Path, grid: str = SIX, **changes) -> Path:
    settings = runs.settings(home, SHORT | {key.replace("__", "."): value for key, value in changes.items()})
    path.write_text(GRID.replace("{settings}", repr(settings)).replace("{grid}", grid))
    return path


def start(config: Path, workdir: Path, *more: str) -> subprocess.Popen:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(runs.ROOT)}
    words = [sys.executable, "-m", "smallbatch.sweep", f"--config={config}", f"--workdir={workdir}", *more]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def sweep(config: Path, workdir: Path, *more: str) -> subprocess.CompletedProcess:
    process = start(config, workdir, *more)
    out, err = process.communicate(timeout=900)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def table(workdir: Path) -> list[dict[str, str]]:
    """Return results.csv without the wall-clock column."""
    with open(workdir / "results.csv") as file:
        return [{key: value for key, value in row.items() if key != "secs"} for row in csv.DictReader(file)]


def times_ended(cell: Path) -> int:
    """Return how many times a cell was run to its end, from its log."""
    lines = (cell / "log.txt").read_text().splitlines()
    return sum(line.startswith(("done after", "diverged after")) for line in lines)


@pytest.fixture(scope="module")
def undisturbed(home, tmp_path_factory) -> Path:
    """The directory of an undisturbed sweep of SIX."""
    directory = tmp_path_factory.mktemp("undisturbed")
    done = sweep(grid_file(home, directory / "grid.py"), directory / "sweep")
    assert done.returncode == 0, done.stderr
    return directory / "sweep"


def test_a_sweep_writes_a_row_and_a_run_directory_per_cell(undisturbed):
    rows = table(undisturbed)
    assert list(rows[0]) == ["id", "train.batch_size", "optimizer.peak_lr", "status", "validation_loss_nats",
                             "tokens", "flops"]  # fmt: skip
    assert [(r["train.batch_size"], r["optimizer.peak_lr"], r["status"]) for r in rows] == [
        (size, rate, status)
        for size in ("1", "4")
        for rate, status in (("0.001", "done"), ("0.01", "done"), ("100000.0", "diverged"))
    ]
    losses = [float(r["validation_loss_nats"]) for r in rows if r["status"] == "done"]
    assert len(set(losses)) == 4
    for row in rows:
        cell = undisturbed / "cells" / row["id"]
        assert records.read_result(cell / "result.json").status == row["status"]
        assert times_ended(cell) == 1 and not (cell / "checkpoints").exists()
    assert not SweepDirectory(undisturbed).locks.holders() and not list(undisturbed.glob("worker-*"))


def test_a_cell_equals_the_run_of_the_train_command(home, undisturbed, tmp_path):
    row = table(undisturbed)[4]
    changes = SHORT | {"train.batch_size": 4, "optimizer.peak_lr": 0.01, "mesh.cpu_devices": 1}
    runs.command(home, changes, tmp_path / "alone")
    alone = records.read_result(tmp_path / "alone" / "result.json")
    assert alone.fingerprint.startswith(row["id"])
    assert float(row["validation_loss_nats"]) == pytest.approx(alone.validation_loss_nats, rel=1e-6)
    assert runs.numbers(tmp_path / "alone", "train")[-1]["loss_nats"] > 0


def test_a_finished_sweep_runs_no_cell_again(home, undisturbed, tmp_path):
    logs = {path: path.stat().st_mtime_ns for path in undisturbed.glob("cells/*/log.txt")}
    done = sweep(grid_file(home, tmp_path / "grid.py"), undisturbed)
    assert done.returncode == 0 and "0 cells to run" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in undisturbed.glob("cells/*/log.txt")} == logs


def workers(workdir: Path) -> list[int]:
    """Return the ids of the worker processes of a sweep."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdecimal() else []
        except OSError:
            continue
        if b"smallbatch.grid.worker" in words and str(workdir).encode() in words:
            found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds workers in /proc")
def test_driver_and_workers_killed_at_random_moments_change_no_number(home, undisturbed, tmp_path):
    config, workdir = grid_file(home, tmp_path / "grid.py", train__checkpoint_every_secs=0.0), tmp_path / "sweep"
    chance = random.Random(0)
    for _ in range(5):
        process = start(config, workdir)
        time.sleep(chance.uniform(2, 7))
        found = workers(workdir)
        for pid in chance.sample(found, k=min(1, len(found))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(chance.uniform(0, 4))
        process.kill()
        process.communicate()
    done = sweep(config, workdir)
    assert done.returncode == 0, done.stderr
    ours, theirs = ([{k: v for k, v in row.items() if k != "id"} for row in table(w)] for w in (workdir, undisturbed))
    assert ours == theirs
    assert not workers(workdir)
    assert max(times_ended(cell) for cell in workdir.glob("cells/*")) == 1


def test_ctrl_c_stops_cleanly_and_the_same_command_resumes(home, undisturbed, tmp_path):
    config, workdir = grid_file(home, tmp_path / "grid.py"), tmp_path / "sweep"
    process = start(config, workdir)
    deadline = time.monotonic() + 120
    while not list(workdir.glob("cells/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err
    assert "rerun the same command to resume" in err and len(table(workdir)) == 6
    assert sweep(config, workdir).returncode == 0
    assert table(workdir) == table(undisturbed)


def test_a_sweep_called_from_python_stops_and_resumes_like_the_command(home, undisturbed, tmp_path):
    path = tmp_path / "sweep"
    file = str(grid_file(home, tmp_path / "six.py"))
    config, grid = config_files.load(file), config_files.load_grid(file)

    def interrupt() -> None:
        deadline = time.monotonic() + 300
        while not [*path.glob("locks/[!.]*")] and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match=r"stopped and saved with \d cells to run; call it again to resume"):
        command.sweep(config, grid, path)
    rows = command.sweep(config, grid, path)
    assert table(path) == table(undisturbed)
    assert [row["validation_loss_nats"] for row in rows] == [
        float(row["validation_loss_nats"]) if row["validation_loss_nats"] else None for row in table(path)
    ]
    assert rows[0]["train.batch_size"] == 1 and rows[2]["status"] == "diverged"


def test_two_sweeps_on_one_directory_share_its_cells_and_run_none_twice(home, undisturbed, tmp_path):
    config, workdir = grid_file(home, tmp_path / "grid.py"), tmp_path / "sweep"
    both = [start(config, workdir) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
    assert table(workdir) == table(undisturbed)
    for log in workdir.glob("cells/*/log.txt"):
        assert log.read_text().count("compiling") == 1


def test_a_cell_that_cannot_run_is_reported_with_its_log_and_the_others_run(home, tmp_path):
    # The second cell needs terabytes.
    grid = 'chain(point({"model.width": 32}), point({"model.width": 2**17}), point({"model.width": 64}))'
    config, workdir = grid_file(home, tmp_path / "grid.py", grid), tmp_path / "sweep"
    done = sweep(config, workdir)
    assert done.returncode == 1, done.stderr
    assert [row["status"] for row in table(workdir)] == ["done", "failed", "done"]
    failed = next(line for line in done.stdout.splitlines() if line.startswith("failed: width=131072"))
    log = Path(failed.rpartition("its log: ")[2])
    assert "the weights and the optimizer's state need" in failed and "error: an update does not fit" in log.read_text()


def test_an_invalid_cell_is_an_error_before_any_cell_starts(home, tmp_path):
    for sizes, words in (
        ([1, -3], "cell 2 (train.batch_size=-3)"),
        ([1, 3], "use 1,248 or 1,344, a multiple of the tokens per update"),
    ):
        grid = f'axis("train.batch_size", {sizes})'
        done = sweep(grid_file(home, tmp_path / "grid.py", grid), tmp_path / "sweep")
        assert done.returncode == 2 and words in done.stderr
    assert not (tmp_path / "sweep").exists()


def test_learning_rates_above_one_that_diverged_are_skipped_with_stop_diverged(home, tmp_path):
    grid = 'axis("optimizer.peak_lr", [1e5, 1e6, 1e7, 1e8])'
    config, workdir = grid_file(home, tmp_path / "grid.py", grid), tmp_path / "sweep"
    workers = f"--workers={min(2, len(os.sched_getaffinity(0)))}"
    assert sweep(config, workdir, "--stop_diverged", workers).returncode == 0
    # One cell per worker starts at once; the last cell is skipped during the sweep.
    assert [row["status"] for row in table(workdir)][::3] == ["diverged", "skipped"]
    status = sweep(config, workdir, "--status")
    assert status.stdout.splitlines()[0].split() == ["batch", "diverged", "skipped"]
    assert sweep(config, workdir).returncode == 0
    assert [row["status"] for row in table(workdir)] == ["diverged"] * 4


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_cells_get_the_cores_of_their_mesh(home, tmp_path):
    grid = 'point({"train.batch_size": 4, "mesh.data": 2})'
    done = sweep(grid_file(home, tmp_path / "grid.py", grid), tmp_path / "sweep")
    assert done.returncode == 0, done.stderr
    (row,) = table(tmp_path / "sweep")
    plan = json_files.read(tmp_path / "sweep" / "cells" / row["id"] / "plan.json")
    assert row["status"] == "done" and plan["mesh"]["data"] == 2


def test_dry_run_prints_the_cost_of_a_grid_and_writes_nothing(home, tmp_path):
    done = sweep(grid_file(home, tmp_path / "grid.py"), tmp_path / "sweep", "--dry_run")
    assert done.returncode == 0 and not (tmp_path / "sweep").exists()
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines[:6]] == ["missing"] * 6 and len(lines) == 8
    assert lines[6].startswith("warning (6 cells): ") or lines[7].startswith("warning (6 cells): ")
    assert "6 cells to run, 2 compiled programs, 7.68k tokens" in done.stdout


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--only=batch_size=7"], "no cell has that value; there are 1, 4"),
        (["--config.optimizer.peak_lr=0.1"], "the grid sweeps optimizer.peak_lr; select among its values"),
        (["--status"], "is not a sweep directory"),
    ],
)
def test_a_usage_error_is_one_line(home, tmp_path, more, words):
    done = sweep(grid_file(home, tmp_path / "grid.py"), tmp_path / "sweep", *more)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


def test_halving_does_not_change_the_results_of_the_best_learning_rates(home, tmp_path):
    grid = 'axis("optimizer.peak_lr", [1e-5, 1e-4, 1e-3, 1e-2])'
    config = grid_file(home, tmp_path / "grid.py", grid)
    assert sweep(config, tmp_path / "all").returncode == 0
    process = start(config, tmp_path / "halved", "--halving=2")
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "halved").glob("cells/*/result.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()  # during a rung
    process.communicate()
    done = sweep(config, tmp_path / "halved", "--halving=2")
    assert done.returncode == 0, done.stderr
    whole, halved = table(tmp_path / "all"), table(tmp_path / "halved")
    assert [row["status"] for row in halved] == ["cut", "cut", "cut", "done"]
    assert [row["tokens"] for row in halved] == ["320", "320", "640", "1280"]
    finished = [row for row in halved if row["status"] == "done"]
    assert [row for row in whole if row["id"] in {r["id"] for r in finished}] == finished


def test_halving_waits_for_siblings_that_another_sweep_runs(home, tmp_path):
    grid = 'axis("optimizer.peak_lr", [1e-5, 1e-4, 1e-3, 1e-2])'
    config, workdir = grid_file(home, tmp_path / "grid.py", grid), tmp_path / "sweep"
    base = config_files.load(str(config))
    cells = enumerate_cells(base, config_files.load_grid(str(config)))
    directory = SweepDirectory(workdir)
    directory.write_grid("grid", base, cells)
    with directory.locks.held(cells[-1].id):
        process = start(config, workdir, "--halving=2")
        assert runs.wait_until(process, lambda: len(list(workdir.glob("cells/*/result.json"))) == 3)
        time.sleep(3)
        assert not list(workdir.glob("cells/*/cut.json"))  # the running cell might be among the best
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert [row["status"] for row in table(workdir)] == ["cut", "cut", "cut", "done"]
