"""What the sweep command says before, while and after cells run is true, and what it cannot do is refused in a line."""

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
from smallbatch.grid import rungs as halving
from smallbatch.grid.axes import axis, point, product
from smallbatch.grid.cells import Cell, enumerate_cells
from smallbatch.grid.local_engine import core_groups
from smallbatch.grid.options import Options
from smallbatch.grid.run import Sweep, plan_cells
from smallbatch.grid.sweep_dir import State, SweepDirectory
from smallbatch.grid.time_left import TimeLeft
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


def said(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """Run the sweep command here; return its exit code and what it printed."""
    monkeypatch.setattr(sys, "argv", ["sweep", *words])
    with pytest.raises(SystemExit) as exit_info, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of runpy, for a module that is imported already
        runpy.run_module("smallbatch.sweep", run_name="__main__")
    code = exit_info.value.code
    assert isinstance(code, int)
    return code, *capsys.readouterr()


def test_a_mesh_that_the_machine_does_not_have_is_refused_before_the_start(home, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "core_groups", lambda cores_per_worker, workers: [[0]])
    grid = product(axis("train.seed", [1, 2]), point({"mesh.data": 2}))
    words = r"cell \w+ \(seed=1 data=2\): the mesh wants 2 devices .* and there are 1 on this CPU"
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
        ({"engine": "local", "lanes": 4}, "--lanes is for --engine=lanes, and this sweep runs on local"),
        ({"engine": "auto", "lanes": 4}, "--lanes is for --engine=lanes, and this sweep runs on local"),
        ({"engine": "local", "ray_address": "x:1"}, "--ray_address is for --engine=ray"),
        ({"engine": "ray", "workers": 2}, "--workers is for --engine=local, and this sweep runs on ray"),
        ({"engine": "lanes", "halving": 2}, "lanes run together"),
        ({"halving": 2}, "--halving compares cells that differ in optimizer.peak_lr alone, and there are none"),
        ({"stop_diverged": True}, "--stop_diverged compares cells"),
        ({"workers": 0}, "--workers=0: the .* cores here are for 1 to .* workers, 1 core each"),
        ({"workers": 1000}, "--workers=1000: the"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(home, tmp_path, options, words):
    with pytest.raises(UserError, match=words) as raised:
        dry_run(tmp_path, cells_of(home, axis("train.seed", [1, 2])), **options)
    assert "\n" not in str(raised.value)


def test_a_sweep_tells_the_warnings_of_its_plans_once(home, tmp_path):
    said = dry_run(tmp_path, cells_of(home, optimizer__t2_tokens=1e6)).splitlines()
    (line,) = [line for line in said if "warning" in line]
    assert line.startswith("warning (4 cells): the half-life of b2 is 1,000,000 tokens, longer than the run")


def test_workers_of_this_machine_can_be_fewer_than_its_cores():
    assert core_groups(1, 1) == core_groups(1)[:1]
    with pytest.raises(UserError, match="leave it out"):
        core_groups(1, len(core_groups(1)) + 1)


def test_no_time_is_given_before_a_cell_has_ended(home, tmp_path):
    for engine in ("local", "lanes"):
        assert "unknown time (until a cell has trained)" in dry_run(tmp_path, cells_of(home), engine=engine)


def test_the_time_left_is_that_of_each_batch_sizes_own_cells(home, tmp_path):
    cells, directory = cells_of(home, product(axis("train.batch_size", [1, 4]), RATES)), SweepDirectory(tmp_path)
    directory.write_grid("grid", cells[0].config, cells)
    flops = plans_of(cells)[cells[0].id].flops
    end(directory, cells[0], flops=flops, secs=1000.0)
    assert "about 1h56m if batch size 4 is as fast as the measured ones" in dry_run(tmp_path, cells, workers=1)
    end(directory, cells[4], flops=flops, secs=100.0)
    assert "about 55m00s" in dry_run(tmp_path, cells, workers=1)  # and not 7 cells x 550 seconds = 1h04m
    three = cells_of(home, product(axis("train.batch_size", [1, 4, 2]), RATES))
    assert "1h01m to 2h01m if batch size 2 is as fast" in dry_run(tmp_path, three, workers=1)


def test_the_time_left_of_a_running_sweep_is_that_of_its_own_cells_by_batch_size(home, tmp_path):
    cells, directory = cells_of(home, product(axis("train.batch_size", [1, 4]), RATES)), SweepDirectory(tmp_path)
    plans = plans_of(cells)
    end(directory, cells[0], flops=plans[cells[0].id].flops, secs=1000.0)
    shown = []

    class Board:
        is_due = True

        def show(self, *about):
            shown.append(about[-1])

    watch = grid_run._Watch(Sweep(directory, cells, cells, plans, workers=2), Board())  # pyright: ignore
    watch.look(set())
    assert shown[-1] == TimeLeft(pytest.approx(7 * 500), pytest.approx(7 * 500), (4,))
    directory.cell(cells[4].id).path.mkdir(parents=True)
    with closing(records.MetricsWriter(directory.cell(cells[4].id).metrics)) as writer:
        writer.write({**train(5), "tokens": BUDGET // 2, "secs": 100.0})  # under way, beside another
    watch.look({cells[4].id, cells[5].id})
    secs = 3 * 500 + 50 + 3 * 100
    assert shown[-1] == TimeLeft(pytest.approx(secs), pytest.approx(secs))


def test_the_time_of_a_lane_is_a_share_already(home, tmp_path):
    cells, directory = cells_of(home), SweepDirectory(tmp_path)
    directory.write_grid("grid", cells[0].config, cells)
    end(directory, cells[0], flops=plans_of(cells)[cells[0].id].flops, secs=100.0)
    assert "about 5m00s (measured on finished cells)" in dry_run(tmp_path, cells, engine="lanes", lanes=4)
    assert "about 5m00s" in dry_run(tmp_path, cells, workers=1)


def test_disk_space_is_counted_for_checkpoints_that_are_kept_and_for_every_record(home):
    def disk_bytes(cells, keep_checkpoints=False, **changes):
        cells = cells_of(home, cells, **changes)
        states = {cell.id: State("missing") for cell in cells}
        plans = plans_of(cells)
        kept = {"at_once": 1, "workers": 1, "keep_checkpoints": keep_checkpoints}
        return cost.cost(cells, plans, states, **kept).disk_bytes, plans[cells[0].id].params

    plain, params = disk_bytes(RATES)
    assert disk_bytes(RATES, keep_checkpoints=True)[0] - plain == 3 * 2 * 12 * params
    assert disk_bytes(RATES, optimizer__weight_average_b=0.9)[0] - plain == 2 * 4 * params
    longer = cost.RECORD_BYTES_WITH_DIAGNOSTICS - cost.RECORD_BYTES
    assert disk_bytes(RATES, train__diagnostics=True)[0] - plain == 2 * 4 * params + 4 * (20 + 1) * longer
    rarely, _ = disk_bytes(RATES, train__log_every_tokens=640)
    assert plain - rarely == 4 * (20 - 2) * cost.RECORD_BYTES
    with_validation, _ = disk_bytes(RATES, train__validate_every_tokens=128)
    assert with_validation - plain == 4 * (10 - 1) * cost.RECORD_BYTES


def test_what_an_earlier_command_cut_or_skipped_is_counted_where_it_will_be_run(home, tmp_path, monkeypatch, capsys):
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


def test_the_status_is_read_from_the_directory_alone_which_stays_as_it_is(home, tmp_path, monkeypatch, capsys):
    cells, directory = cells_of(home), SweepDirectory(tmp_path / "sweep")
    directory.write_grid("grid", runs.tiny_config(home, {}), cells)
    end(directory, cells[0])
    for cell in cells[1:3]:
        directory.mark(cell.id, "failed", {"error": f"{cell.name} had no luck"})
    directory.log(cells[1].id).touch()
    snapshot = lambda: {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
    before = snapshot()
    code, out, _ = said(monkeypatch, capsys, f"--workdir={directory.path}", "--status")
    lines = out.splitlines()
    assert (code, lines[0].split()[:4], lines[1].split()[:4]) == (0, ["batch", "done", "failed", "missing"], [*"2121"])
    name = "peak_lr=0.002"
    assert lines[2] == f"failed: {name}: {name} had no luck; its log: {directory.log(cells[1].id)}"
    assert lines[3] == "failed: peak_lr=0.004: peak_lr=0.004 had no luck" and len(lines) == 4
    _, out, _ = said(monkeypatch, capsys, f"--workdir={directory.path}", "--status", "--only=peak_lr=0.008")
    assert [line.split() for line in out.splitlines()] == [["batch", "missing"], ["2", "1"]]
    assert snapshot() == before
    code, _, err = said(monkeypatch, capsys, "--status")
    assert code == 2 and "no grid is given" in err


def test_workdir_alone_resumes_the_grid_in_it(home, tmp_path, monkeypatch, capsys):
    grid = product(axis("train.seed", [1, 2]), RATES)
    config = runs.tiny_config(home, {"train.batch_size": 4})
    directory, started = SweepDirectory(tmp_path / "sweep"), []
    directory.write_grid("rates", config, enumerate_cells(config, grid))
    before = directory.grid_json.read_bytes()
    monkeypatch.setattr(command, "start", lambda *asked: started.append(asked) or 0)
    workdir = f"--workdir={directory.path}"
    code, _, err = said(monkeypatch, capsys, workdir, "--only=seed=1", "--config.mesh.tensor=None")
    assert code == 0, err
    (_, name, base, cells, chosen, _) = started[0]
    assert name == "rates" and base.train.batch_size == 4 and base.mesh.tensor is None
    assert [cell.id for cell in cells] == [cell.id for cell in directory.read_grid()] and len(chosen) == 4
    for word, words in [
        ("--config.train.batch_size=8", "holds a sweep of another config (train.batch_size: 4 | 8: saved | given)"),
        ("--config.train.seed=7", "the grid sweeps train.seed; select among its values with --only=KEY=VALUE"),
    ]:
        code, _, err = said(monkeypatch, capsys, workdir, word)
        assert code == 2 and words in err and err.count("\n") == 1, err
    code, _, err = said(monkeypatch, capsys, f"--workdir={tmp_path}/none")
    assert code == 2 and "is not a sweep directory" in err and not (tmp_path / "none").exists()
    assert len(started) == 1 and directory.grid_json.read_bytes() == before


def test_a_dry_run_refuses_the_directory_that_a_sweep_refuses(home, tmp_path):
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
def test_a_mistake_leaves_no_grid_behind(home, tmp_path, changes, words):
    cells = cells_of(home, **changes)
    directory = SweepDirectory(tmp_path / "sweep")
    with pytest.raises(UserError, match=words):
        command.start(directory, "grid", cells[0].config, cells, cells, Options(engine="local"))
    assert not directory.path.exists()


def test_the_tokens_that_are_left_are_those_of_the_chosen_cells_that_are_to_be_run(home, tmp_path):
    every, directory = cells_of(home, product(axis("train.seed", [1, 2]), RATES)), SweepDirectory(tmp_path)
    cells = every[:4]
    end(directory, cells[0])
    end(directory, cells[1], "diverged", tokens=128)
    directory.cell(cells[2].id).path.mkdir(parents=True)
    with closing(records.MetricsWriter(directory.cell(cells[2].id).metrics)) as writer:
        writer.write(train(5))  # 320 tokens, in an earlier session
    shown = []

    class Board:
        is_due = True

        def show(self, states, running, done_tokens, total_tokens, time_left):
            shown.append((done_tokens, total_tokens))

    watch = grid_run._Watch(Sweep(directory, every, cells, plans_of(every)), Board())  # pyright: ignore
    watch.look(set())
    end(directory, cells[3], "diverged", tokens=64)
    watch.look({cells[3].id})
    watch.look(set())
    begun = BUDGET + 128 + 320
    assert shown[0] == (begun, BUDGET + 128 + 2 * BUDGET)
    assert shown[-1] == (begun + 64, BUDGET + 128 + BUDGET + 64)


def test_halving_says_which_groups_it_cannot_compare(home, tmp_path):
    cells, directory = cells_of(home), SweepDirectory(tmp_path)
    whole = lambda: halving.whole_groups(directory, cells, plans_of(cells), 2)
    assert whole() == 0
    end(directory, cells[0])
    assert whole() == 1
    for cell in cells[1:3]:
        directory.mark(cell.id, "cut", {})
    end(directory, cells[3], "stopped", tokens=BUDGET // 2)  # past its last rung: the group was halved
    assert whole() == 0
