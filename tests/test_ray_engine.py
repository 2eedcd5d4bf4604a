"""A sweep on a Ray cluster has the results of a local sweep, even if nodes, workers or the command are killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray_cluster
import runs
import test_sweep

from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.runs import records

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers of a node in /proc"),
]

home = runs.home

LONG = {"train__budget_tokens": 5120, "train__log_every_tokens": 640}
SAVED = {"train__checkpoint_every_secs": 0.0}  # eight checkpoints per cell, so that a test can kill it between two


@pytest.fixture(scope="module")
def cluster() -> Iterator[ray_cluster.Cluster]:
    """A cluster with one node; tests add and remove others."""
    with ray_cluster.cluster() as cluster:
        cluster.add_node()
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(home, tmp_path_factory) -> list[dict[str, str]]:
    """The results of an undisturbed local sweep."""
    directory = tmp_path_factory.mktemp("undisturbed")
    done = test_sweep.sweep(test_sweep.grid_file(home, directory / "grid.py", **LONG), directory / "sweep")
    assert done.returncode == 0, done.stderr
    return numbers(directory / "sweep")


def numbers(workdir: Path) -> list[dict[str, str]]:
    """Return the results without the ids, which depend on the checkpoint interval."""
    return [{key: value for key, value in row.items() if key != "id"} for row in test_sweep.table(workdir)]


def start(cluster: ray_cluster.Cluster, config: Path, workdir: Path) -> subprocess.Popen:
    return test_sweep.start(config, workdir, "--engine=ray", f"--ray_address={cluster.address}")


def wait_for_saved_cell(process: subprocess.Popen, workdir: Path, nodes: list[int]) -> tuple[str, int]:
    """Wait until a cell on one of these nodes has a checkpoint; return its id and the process id of its worker."""
    found: list[tuple[str, int]] = []

    def look() -> bool:
        for lock in workdir.glob("locks/*"):
            try:
                pid = int(lock.read_text().split()[-1])
            except (OSError, IndexError):
                continue
            theirs = pid in {worker for node in nodes for worker in ray_cluster.children(node)}
            if theirs and runs.steps_saved(workdir / "cells" / lock.name):
                found.append((lock.name, pid))
        return bool(found)

    assert runs.wait_until(process, look), process.communicate()[1]
    return found[0]


def test_a_lost_node_and_a_killed_worker_change_no_number(cluster, home, undisturbed, tmp_path):
    config = test_sweep.grid_file(home, tmp_path / "grid.py", **LONG, **SAVED)
    workdir, node = tmp_path / "sweep", cluster.add_node()
    process = start(cluster, config, workdir)
    lost, _ = wait_for_saved_cell(process, workdir, [node])
    cluster.lose_node(node)
    killed, pid = wait_for_saved_cell(process, workdir, cluster.nodes)
    os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert numbers(workdir) == undisturbed
    for cell in (lost, killed):
        assert "resuming after update" in (workdir / "cells" / cell / "log.txt").read_text()
    assert not SweepDirectory(workdir).locks.holders()


def test_a_stop_saves_the_running_cells_before_the_command_ends(cluster, home, tmp_path):
    workdir = tmp_path / "sweep"
    # A cell that trains for minutes and saves once per hour.
    endless = {
        "train__budget_tokens": 1280 * 1000,
        "train__log_every_tokens": 1280,
        "train__checkpoint_every_secs": 3600.0,
    }
    config = test_sweep.grid_file(home, tmp_path / "grid.py", 'axis("train.batch_size", [1])', **endless)
    process = start(cluster, config, workdir)
    assert runs.wait_until(process, lambda: any(runs.record_count(cell) for cell in workdir.glob("cells/*")))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "rerun the same command to resume" in err and "Traceback" not in err
    (cell,) = workdir.glob("cells/*")
    assert records.read_result(cell / "result.json").status == "stopped" and runs.steps_saved(cell)
    assert not SweepDirectory(workdir).locks.holders()


def test_a_core_is_reserved_by_one_worker_at_a_time(tmp_path, monkeypatch):
    from smallbatch.grid import ray_engine

    monkeypatch.setattr(ray_engine.tempfile, "tempdir", str(tmp_path))
    assert [ray_engine._reserve(core) for core in (0, 1, 0)] == [True, True, False]


def test_a_worker_reserves_its_number_of_cores(tmp_path, monkeypatch):
    from smallbatch.grid import ray_engine

    script = (
        "import os; from smallbatch.grid import ray_engine; ray_engine._reserve_cores(1);"
        "print(*os.sched_getaffinity(0), flush=True); input()"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(runs.ROOT)}
    words = [sys.executable, "-c", script]
    with subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        theirs = int(worker.stdout.readline())
        monkeypatch.setattr(ray_engine.tempfile, "tempdir", str(tmp_path))
        for core in os.sched_getaffinity(0):
            assert ray_engine._reserve(core) == (core != theirs)
        worker.communicate("\n")


def test_a_missing_cluster_is_a_one_line_error(home, tmp_path):
    done = test_sweep.sweep(
        test_sweep.grid_file(home, tmp_path / "grid.py"),
        tmp_path / "sweep",
        "--engine=ray",
        "--ray_address=127.0.0.1:1",
    )
    assert done.returncode == 2 and "there is no Ray cluster at 127.0.0.1:1" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "sweep").exists()


def test_without_ray_the_error_names_the_package_to_install(home, tmp_path, monkeypatch):
    (tmp_path / "ray.py").write_text("raise ImportError('no ray here')")
    monkeypatch.setattr(runs, "ROOT", f"{tmp_path}:{runs.ROOT}")  # becomes PYTHONPATH
    done = test_sweep.sweep(test_sweep.grid_file(home, tmp_path / "grid.py"), tmp_path / "sweep", "--engine=ray")
    assert done.returncode == 2 and "pip install 'smallbatch[ray]'" in done.stderr
