"""The sweep command reports the right cells, costs and times, and rejects flags and directories it cannot use."""

import dataclasses
import os
import runpy
import sys
import warnings
from contextlib import closing
from pathlib import Path

import pytest
import runs
from test_records import RESULT, train

from smallbatch.errors import UserError
from smallbatch.grid import command, cost
from smallbatch.grid import run as grid_run
from smallbatch.grid.axes import axis, point, product
from smallbatch.grid.cells import Cell, enumerate_cells
from smallbatch.grid.local_engine import core_groups
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.grid.sweep_plan import SweepPlan, plan_cells
from smallbatch.grid.tasks import Options
from smallbatch.runs import records
from smallbatch.specs import DeviceSpec

home = runs.home

RATES = axis("optimizer.peak_lr", [0.001, 0.002, 0.004, 0.008])
BUDGET = runs.TINY["train.budget_tokens"]


def cells_of(home: Path, grid=RATES, **changes) -> list[Cell]:
    return enumerate_cells(runs.tiny_config(home, {k.replace("__", "."): v for k, v in changes.items()}), grid)


def dry_run(path: Path, cells: list[Cell], **options) -> str:
    return command.dry_run_text(SweepDirectory(path), cells, cells, Options(**{"engine": "local"} | options))


def plans_of(cells: list[Cell]) -> dict:
    return plan_cells(cells, lambda config: DeviceSpec("cpu", 1))


def end(directory: SweepDirectory, cell: Cell, status: str = "done", tokens: int = BUDGET, **changes) -> None:
    """Write the result of a cell."""
    directory.cell(cell.id).path.mkdir(parents=True, exist_ok=True)
    result = dataclasses.replace(RESULT, status=status, tokens=tokens, **changes)
    records.write_result(directory.cell(cell.id).result, result)


def monitor_of(sweep: SweepPlan) -> tuple[grid_run._Monitor, list[dict]]:
    """Return a monitor, and the list of what it shows."""
    shown = []

    class Recorder:
        def update(self, tokens, **fields):
            shown.append({"tokens": tokens, **fields})

    return grid_run._Monitor(sweep, Recorder()), shown  # pyright: ignore


def sweep_command(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """Run the sweep command here; return its exit code and what it printed."""
    monkeypatch.setattr(sys, "argv", ["sweep", *words])
    with pytest.raises(SystemExit) as exit_info, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of runpy, for a module that is imported already
        runpy.run_module("smallbatch.sweep", run_name="__main__")
    code = exit_info.value.code
    assert isinstance(code, int)
    return code, *capsys.readouterr()


def test_a_mesh_with_more_devices_than_the_machine_is_an_error(home, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "core_groups", lambda cores_per_worker, workers: [[0]])
    grid = product(axis("train.seed", [1, 2]), point({"mesh.data": 2}))
    words = r"cell \w+ \(seed=1 data=2\): the mesh needs 2 devices .* but there are 1 on this CPU"
    cells = cells_of(home, grid)
    with pytest.raises(UserError, match=words):
        dry_run(tmp_path, cells)
    with pytest.raises(UserError, match=words):
        command.sweep(runs.tiny_config(home, {}), grid, tmp_path / "sweep", options=Options(engine="local"))
    assert not os.listdir(tmp_path)
    assert "2 cells to run" in dry_run(tmp_path, cells_of(home, grid, mesh__cpu_devices=2))  # two on one core, as asked


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "local", "lanes": 4}, "--lanes is for --engine=lanes, and this sweep uses local"),
        ({"engine": "auto", "lanes": 4}, "--lanes is for --engine=lanes, and this sweep uses local"),
        ({"engine": "local", "ray_address": "x:1"}, "--ray_address is for --engine=ray"),
        ({"engine": "ray", "workers": 2}, "--workers is for --engine=local, and this sweep uses ray"),
        ({"engine": "lanes", "halving": 2}, "lanes train together"),
        ({"halving": 2}, "--halving compares cells that differ only in optimizer.peak_lr, and there are none"),
        ({"stop_diverged": True}, "--stop_diverged compares cells"),
        ({"workers": 0}, "--workers=0: the .* cores of this machine allow 1 to .* workers with 1 core each"),
        ({"workers": 1000}, "--workers=1000: the"),
    ],
)
def test_a_flag_without_effect_is_an_error(home, tmp_path, options, words):
    with pytest.raises(UserError, match=words) as raised:
        dry_run(tmp_path, cells_of(home, axis("train.seed", [1, 2])), **options)
    assert "\n" not in str(raised.value)


def test_a_warning_is_printed_once_with_its_number_of_cells(home, tmp_path):
    lines = dry_run(tmp_path, cells_of(home, optimizer__t2_tokens=1e6)).splitlines()
    (line,) = [line for line in lines if "warning" in line]
    assert line.startswith("warning (4 cells): the half-life of b2 is 1,000,000 tokens, longer than the run")


def test_workers_may_be_fewer_than_cores():
    assert core_groups(1, 1) == core_groups(1)[:1]
    with pytest.raises(UserError, match="omit the flag"):
        core_groups(1, len(core_groups(1)) + 1)


def test_the_time_is_unknown_before_a_cell_has_ended(home, tmp_path):
    for engine in ("local", "lanes"):
        assert "unknown time (until a cell has trained)" in dry_run(tmp_path, cells_of(home), engine=engine)


def test_the_time_left_is_estimated_per_batch_size(home, tmp_path):
    cells, directory = cells_of(home, product(axis("train.batch_size", [1, 4]), RATES)), SweepDirectory(tmp_path)
    directory.write_grid("grid", cells[0].config, cells)
    flops = plans_of(cells)[cells[0].id].flops
    end(directory, cells[0], flops=flops, secs=1000.0)
    assert "about 1h56m if batch size 4 is as fast as the measured ones" in dry_run(tmp_path, cells, workers=1)
    end(directory, cells[4], flops=flops, secs=100.0)
    assert "about 55m00s" in dry_run(tmp_path, cells, workers=1)  # and not 7 cells x 550 seconds = 1h04m
    three = cells_of(home, product(axis("train.batch_size", [1, 4, 2]), RATES))
    assert "1h01m to 2h01m if batch size 2 is as fast" in dry_run(tmp_path, three, workers=1)


def test_the_time_left_of_a_running_sweep_includes_cells_that_are_running(home, tmp_path, monkeypatch):
    cells, directory = cells_of(home, product(axis("train.batch_size", [1, 4]), RATES)), SweepDirectory(tmp_path)
    plans = plans_of(cells)
    end(directory, cells[0], flops=plans[cells[0].id].flops, secs=1000.0)
    monkeypatch.setattr(grid_run, "REFRESH_SECS", -1.0)
    monitor, shown = monitor_of(SweepPlan(directory, cells, cells, plans, workers=2))
    monitor.update(set())
    assert shown[-1]["left"] == "about 58m20s if batch size 4 is as fast as the measured ones"  # 7 x 500 s
    directory.cell(cells[4].id).path.mkdir(parents=True)
    with closing(records.MetricsWriter(directory.cell(cells[4].id).metrics)) as writer:
        writer.write({**train(5), "tokens": BUDGET // 2, "secs": 100.0})  # under way, beside another
    monitor.update({cells[4].id, cells[5].id})
    assert shown[-1]["left"] == "about 30m50s"  # 3 x 500 s + 50 s + 3 x 100 s


def test_the_time_of_a_lane_is_not_divided_by_the_number_of_lanes(home, tmp_path):
    cells, directory = cells_of(home), SweepDirectory(tmp_path)
    directory.write_grid("grid", cells[0].config, cells)
    end(directory, cells[0], flops=plans_of(cells)[cells[0].id].flops, secs=100.0)
    assert "about 5m00s (measured on finished cells)" in dry_run(tmp_path, cells, engine="lanes", lanes=4)
    assert "about 5m00s" in dry_run(tmp_path, cells, workers=1)


def test_checkpoint_space_is_counted_for_running_or_for_all_cells(home):
    def size(at_once: int | None = 1, **changes) -> float:
        plans = plans_of(cells_of(home, **changes)).values()
        return cost.checkpoints_bytes(plans, at_once) / next(iter(plans)).params / 2 / 4  # two checkpoints of float32

    assert (size(), size(at_once=2), size(at_once=None)) == (3, 6, 12)
    assert size(optimizer__weight_average_b=0.9) == 4 and size(train__diagnostics=True) > 3


def test_cells_that_an_earlier_command_cut_or_skipped_are_run_without_its_flag(home, tmp_path, monkeypatch, capsys):
    cells, directory = cells_of(home), SweepDirectory(tmp_path)
    directory.write_grid("grid", runs.tiny_config(home, {}), cells)
    for cell, status in zip(cells, ("cut", "skipped", "failed"), strict=False):
        directory.mark(cell.id, status, {})
    assert "4 cells to run" in dry_run(directory.path, cells)
    assert "2 cells to run" in dry_run(directory.path, cells, halving=2, stop_diverged=True)
    assert directory.state(cells[0].id).status == "cut"  # nothing was written
    monkeypatch.setattr(command, "run", lambda sweep, *_: directory.states(sweep.cells))
    command.start(directory, "grid", runs.tiny_config(home, {}), cells, cells, Options(engine="local"))
    assert "4 cells to run" in capsys.readouterr().err


def test_status_reads_the_directory_and_writes_nothing(home, tmp_path, monkeypatch, capsys):
    cells, directory = cells_of(home), SweepDirectory(tmp_path / "sweep")
    directory.write_grid("grid", runs.tiny_config(home, {}), cells)
    end(directory, cells[0])
    for cell in cells[1:3]:
        directory.mark(cell.id, "failed", {"error": f"{cell.name} had no luck"})
    directory.log(cells[1].id).touch()
    snapshot = lambda: {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
    before = snapshot()
    code, out, _ = sweep_command(monkeypatch, capsys, f"--workdir={directory.path}", "--status")
    lines = out.splitlines()
    assert (code, lines[0].split()[:4], lines[1].split()[:4]) == (0, ["batch", "done", "failed", "missing"], [*"2121"])
    name = "peak_lr=0.002"
    assert lines[2] == f"failed: {name}: {name} had no luck; its log: {directory.log(cells[1].id)}"
    assert lines[3] == "failed: peak_lr=0.004: peak_lr=0.004 had no luck" and len(lines) == 4
    _, out, _ = sweep_command(monkeypatch, capsys, f"--workdir={directory.path}", "--status", "--only=peak_lr=0.008")
    assert [line.split() for line in out.splitlines()] == [["batch", "missing"], ["2", "1"]]
    assert snapshot() == before
    code, _, err = sweep_command(monkeypatch, capsys, "--status")
    assert code == 2 and "no grid is given" in err


def test_workdir_alone_resumes_the_grid_in_it(home, tmp_path, monkeypatch, capsys):
    grid = product(axis("train.seed", [1, 2]), RATES)
    config = runs.tiny_config(home, {"train.batch_size": 4})
    directory, started = SweepDirectory(tmp_path / "sweep"), []
    directory.write_grid("rates", config, enumerate_cells(config, grid))
    before = directory.grid_json.read_bytes()
    monkeypatch.setattr(command, "start", lambda *asked: started.append(asked) or 0)
    workdir = f"--workdir={directory.path}"
    code, _, err = sweep_command(monkeypatch, capsys, workdir, "--only=seed=1", "--config.mesh.tensor=None")
    assert code == 0, err
    (_, name, base, cells, chosen, _) = started[0]
    assert name == "rates" and base.train.batch_size == 4 and base.mesh.tensor is None
    assert [cell.id for cell in cells] == [cell.id for cell in directory.read_grid()] and len(chosen) == 4
    for word, words in [
        ("--config.train.batch_size=8", "holds a sweep of another config (train.batch_size: 4 | 8: saved | given)"),
        ("--config.train.seed=7", "the grid sweeps train.seed; select among its values with --only=KEY=VALUE"),
    ]:
        code, _, err = sweep_command(monkeypatch, capsys, workdir, word)
        assert code == 2 and words in err and err.count("\n") == 1, err
    code, _, err = sweep_command(monkeypatch, capsys, f"--workdir={tmp_path}/none")
    assert code == 2 and "is not a sweep directory" in err and not (tmp_path / "none").exists()
    assert len(started) == 1 and directory.grid_json.read_bytes() == before


def test_a_dry_run_rejects_the_directories_that_a_sweep_rejects(home, tmp_path):
    (tmp_path / "file").touch()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    cells = cells_of(home)
    start = lambda path: command.start(
        SweepDirectory(path), "g", cells[0].config, cells, cells, Options(engine="local")
    )
    for path, words in [
        (other, "is not empty and holds no sweep; choose another --workdir"),
        (tmp_path / "file", "file is not a directory; choose another --workdir"),
        (tmp_path / "file" / "sweep", "file is not a directory; choose another --workdir"),
    ]:
        for attempt in (lambda path=path: dry_run(path, cells), lambda path=path: start(path)):
            with pytest.raises(UserError, match=words):
                attempt()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__source": "text:no/such/*.txt"}, "no file matches"),
        (
            {"train__sample_tokens": 1, "train__sample_prompt": "x" * 33},
            r"cell \w+ \(peak_lr=0.001\): .* has 33 tokens",
        ),
    ],
)
def test_a_usage_error_writes_no_grid(home, tmp_path, changes, words):
    cells = cells_of(home, **changes)
    directory = SweepDirectory(tmp_path / "sweep")
    with pytest.raises(UserError, match=words):
        command.start(directory, "grid", cells[0].config, cells, cells, Options(engine="local"))
    assert not directory.path.exists()


def test_progress_counts_the_tokens_of_the_chosen_cells(home, tmp_path, monkeypatch):
    every, directory = cells_of(home, product(axis("train.seed", [1, 2]), RATES)), SweepDirectory(tmp_path)
    cells = every[:4]
    end(directory, cells[0])
    end(directory, cells[1], "diverged", tokens=128)
    directory.cell(cells[2].id).path.mkdir(parents=True)
    with closing(records.MetricsWriter(directory.cell(cells[2].id).metrics)) as writer:
        writer.write(train(5))  # 320 tokens, in an earlier session
    monkeypatch.setattr(grid_run, "REFRESH_SECS", -1.0)
    monitor, shown = monitor_of(SweepPlan(directory, every, cells, plans_of(every)))
    monitor.update(set())
    end(directory, cells[3], "diverged", tokens=64)
    monitor.update({cells[3].id})
    monitor.update(set())
    begun = BUDGET + 128 + 320
    share = lambda tokens, total: {"tokens": tokens, "progress": f"{tokens / total:.0%}"}
    assert shown[0].items() >= (share(begun, BUDGET + 128 + 2 * BUDGET) | {"cells": "2/4"}).items()
    assert shown[-1].items() >= (share(begun + 64, BUDGET + 128 + BUDGET + 64) | {"cells": "3/4"}).items()
