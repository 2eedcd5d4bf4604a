"""A lane equals the same run alone, whatever the other lanes of its group do and however often it is stopped."""

import fcntl
import os
import random
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
import test_sweep
from test_sweep import grid_file, sweep

from smallbatch.errors import UserError
from smallbatch.files import json_files
from smallbatch.grid import axis, command, product
from smallbatch.grid import lane_engine as engines
from smallbatch.grid import run as grid_run
from smallbatch.grid.cells import Cell, enumerate_cells
from smallbatch.grid.lane_engine import LaneEngine
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.grid.tasks import Task
from smallbatch.plan import device_flops as peaks
from smallbatch.runs import records
from smallbatch.runs import run_dir as workdir
from smallbatch.training import lanes, run
from smallbatch.training import program as programs
from smallbatch.training.lanes import choose_lanes, shape_of, train_group
from smallbatch.training.program import OutOfMemory, train_program
from smallbatch.training.signals import Stop
from smallbatch.training.trainer import Run, Trainer

pytestmark = pytest.mark.slow

home = runs.home

VARIED = [
    {"optimizer.peak_lr": 0.01},
    {"optimizer.peak_lr": 0.03, "train.seed": 7},
    {"optimizer.peak_lr": 1e5},  # diverges
    {"optimizer.t2_tokens": 500.0, "optimizer.weight_decay": 0.1, "train.seed": 2**31 + 5},
]
BASE = {"train.validate_every_tokens": 640, "train.checkpoint_every_secs": 0.0}
FULL = "RESOURCE_EXHAUSTED: Out of memory allocating 3 bytes."


@pytest.fixture(scope="module")
def plans(home):
    return [run.make_plan(runs.tiny_config(home, BASE | changes)) for changes in VARIED]


@pytest.fixture(scope="module")
def dataset(plans):
    return run.prepare.prepare(plans[0].data)


def train(plans, dataset, path: Path, lane_count: int = 4, devices: int = 1, poll=lambda live: False) -> list[Path]:
    paths = [path / str(i) for i in range(len(plans))]
    for one in paths:
        one.mkdir(parents=True, exist_ok=True)
    group = [Run(plan, workdir.RunDir(one)) for plan, one in zip(plans, paths, strict=True)]
    left = [None if workdir.finished(run.workdir) else run for run in group]
    train_group(left, path / "group", dataset, lane_count, devices, 0.0, poll)
    return paths


@pytest.fixture(scope="module")
def group(plans, dataset, tmp_path_factory) -> list[Path]:
    return train(plans, dataset, tmp_path_factory.mktemp("group"))


def test_a_lane_equals_the_same_run_alone_beside_a_diverged_lane(home, group, tmp_path):
    for i, changes in enumerate(VARIED):
        result, expected = runs.trained(home, tmp_path / str(i), BASE | changes)
        found = runs.numbers(group[i])
        assert [(r["kind"], r["step"]) for r in found] == [(r["kind"], r["step"]) for r in expected]
        finite = [(a["loss_nats"], b["loss_nats"]) for a, b in zip(found, expected, strict=True) if b["loss_nats"]]
        np.testing.assert_allclose(*np.array(finite).T, rtol=2e-5)
        ours = records.read_result(group[i] / "result.json")
        assert (ours.status, ours.fingerprint, ours.seed) == (result.status, result.fingerprint, result.seed)
        assert ours.diverged_at_step == result.diverged_at_step
    assert [records.read_result(path / "result.json").status for path in group] == ["done", "done", "diverged", "done"]


def test_a_group_stopped_at_every_step_ends_with_the_same_numbers(group, plans, dataset, tmp_path):
    polls = 0

    def stop_at_third_look(live: list[int]) -> bool:
        nonlocal polls
        polls += 1
        return polls % 3 == 0

    for _ in range(20):
        paths = train(plans, dataset, tmp_path, poll=stop_at_third_look)
        if (paths[0] / "result.json").exists():
            break
    assert polls > 10
    for ours, theirs in zip(paths, group, strict=True):
        assert runs.numbers(ours) == runs.numbers(theirs)


def test_eight_devices_and_empty_lanes_change_losses_only_by_rounding(group, plans, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(peaks, "peak_flops", lambda kind: 1e12)
    paths = train(plans, dataset, tmp_path, lane_count=8, devices=8)
    for ours, theirs in zip(paths, group, strict=True):
        a, b = runs.train_losses(runs.numbers(ours)), runs.train_losses(runs.numbers(theirs))
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=2e-5)
    result = records.read_result(paths[0] / "result.json")  # the rate is that of all lanes, on all devices
    assert result.mfu == pytest.approx(result.tokens_per_sec * plans[0].flops_per_token / 8e12)
    eight = train_program(plans[0].program(), 8, 8)
    text = eight.chunk.as_text()
    assert not [word for word in ("all-reduce(", "all-gather(", "collective-permute(") if word in text]
    assert len(eight.abstract_state.params["embed_VxD"].sharding.device_set) == 8


def test_plans_of_different_programs_cannot_be_lanes_of_one_group(home, plans):
    assert len({shape_of(plan) for plan in plans}) == 1
    for changes in ({"train.batch_size": 4}, {"optimizer.name": "sgd", "optimizer.peak_lr": 0.3, "optimizer.b1": None,
                    "optimizer.t2_tokens": None}, {"train.budget_tokens": 640}, {"data.shuffle_seed": 1}):  # fmt: skip
        assert shape_of(run.make_plan(runs.tiny_config(home, BASE | changes))) != shape_of(plans[0])


def test_the_number_of_lanes_is_measured(plans):
    assert choose_lanes(plans[0], most=2, devices=1, secs=0.05) in (1, 2)


def test_the_number_of_lanes_is_bounded_by_memory(plans, monkeypatch):
    monkeypatch.setattr(lanes, "_updates_per_sec", lambda program, plan, secs: 1.0)
    needed = train_program(plans[0].program()).memory().total_bytes
    monkeypatch.setattr(programs, "device_memory_bytes", lambda device: needed + 1)
    assert choose_lanes(plans[0], most=4, devices=1) == 1
    monkeypatch.setattr(programs, "device_memory_bytes", lambda device: needed - 1)
    with pytest.raises(OutOfMemory, match="an update does not fit in the memory of a device"):
        choose_lanes(plans[0], most=4, devices=1)


@pytest.mark.parametrize(("fitting", "chosen"), [(3, 2), (7, 4), (0, None)])
def test_the_number_of_lanes_doubles_until_memory_is_exhausted(plans, monkeypatch, fitting, chosen):
    class Program:
        def __init__(self, spec, count, devices):
            self.count = count

        def check_memory(self, with_updates, max_frac):
            if self.count > fitting:
                raise jax.errors.JaxRuntimeError(FULL)

    monkeypatch.setattr(lanes, "train_program", Program)
    monkeypatch.setattr(lanes, "_updates_per_sec", lambda program, plan, secs: 1.0)
    if chosen is not None:
        assert choose_lanes(plans[0], most=64, devices=1) == chosen
        return
    with pytest.raises(UserError, match="does not fit in the memory of a device"):
        choose_lanes(plans[0], most=64, devices=1)


# --- the engine, in this process, with four lanes on one device: the program of `group`


class Grid:
    """A sweep directory and a grid over BASE; its engine is called as `grid.run.run` calls it."""

    def __init__(self, home: Path, path: Path, *axes):
        self.directory = SweepDirectory(path)
        base = runs.tiny_config(home, BASE | {"train.checkpoint_every_secs": 3600.0})
        self.cells = enumerate_cells(base, product(*axes))
        self.plans = {cell.id: run.make_plan(cell.config) for cell in self.cells}
        self.directory.write_grid("grid", base, self.cells)

    def run(self, chosen: list[Cell] | None = None, *, lanes=4, keep=False, on_change=lambda ids: None, polls=None):
        """Run the engine. polls: polls of the stop before it is requested; None: never."""
        left = float("inf") if polls is None else polls

        def stop() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        engine = LaneEngine(self.directory, self.cells, self.plans, lanes, keep)
        tasks = [Task(cell, "") for cell in chosen or self.cells if self.status(cell) == "missing"]
        engine.run(tasks, on_change, stop)

    def status(self, cell: Cell) -> str:
        return self.directory.state(cell.id).status

    @property
    def statuses(self) -> list[str]:
        return [self.status(cell) for cell in self.cells]

    def path(self, cell: Cell) -> Path:
        return self.directory.cell(cell.id).path

    def numbers(self, cell: Cell) -> list[dict]:
        return runs.numbers(self.path(cell))

    def files(self, cell: Cell) -> dict[str, tuple]:
        """Return times and contents of a cell's records, which change if they are written again."""
        found = (self.path(cell) / name for name in ("metrics.jsonl", "result.json"))
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


RATES = axis("optimizer.peak_lr", [0.001, 0.01, 1e5])
SEEDS = axis("train.seed", [1, 2])


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


@pytest.fixture(scope="module")
def undisturbed(home, tmp_path_factory) -> dict[str, list[dict]]:
    """Return the records of every cell of RATES x SEEDS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)
        grid = Grid(home, tmp_path_factory.mktemp("undisturbed"), RATES, SEEDS)
        grid.run()
    assert sorted(grid.statuses) == ["diverged"] * 2 + ["done"] * 4
    assert [path.name for path in grid.directory.path.glob("groups/[!.]*")] == ["claims"]
    return {cell.id: grid.numbers(cell) for cell in grid.cells}


def test_an_extended_grid_changes_no_finished_cell(home, undisturbed, one_device, tmp_path):
    small = Grid(home, tmp_path, RATES, axis("train.seed", [1]))
    small.run()
    before = {cell.id: small.files(cell) for cell in small.cells}
    grid = Grid(home, tmp_path, RATES, SEEDS)
    grid.run()
    assert {cell.id: grid.files(cell) for cell in small.cells} == before
    assert {cell.id: grid.numbers(cell) for cell in grid.cells}.keys() == undisturbed.keys()


def test_a_stop_while_results_are_written_changes_no_written_result(
    home, undisturbed, one_device, tmp_path, monkeypatch
):
    grid, write, calls = Grid(home, tmp_path, RATES, SEEDS), records.write_result, []

    def killed_at_the_third(path, result):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(path, result)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(records, "write_result", killed_at_the_third)
        grid.run()
    there = {cell.id: grid.files(cell) for cell in grid.cells if grid.status(cell) != "missing"}
    assert len(there) == 2
    grid.run()
    assert {cell_id: grid.files(cell) for cell in grid.cells if (cell_id := cell.id) in there} == there
    assert {cell.id: grid.numbers(cell) for cell in grid.cells} == undisturbed


def test_each_engine_resumes_the_unfinished_cells_of_the_other(home, undisturbed, one_device, tmp_path):
    grid = Grid(home, tmp_path, RATES, SEEDS)
    first, second = grid.cells[:2]
    run.train(first.config, grid.path(first), until_tokens=640)
    grid.run(polls=6)
    assert not (grid.path(first) / "checkpoints").exists() and grid.status(first) == "missing"
    run.train(first.config, grid.path(first))  # the checkpoints of the lanes are ignored
    run.train(second.config, grid.path(second), until_tokens=960)  # further than the lanes
    theirs = grid.files(first)
    grid.run()
    assert sorted(grid.statuses) == ["diverged"] * 2 + ["done"] * 4 and grid.files(first) == theirs
    assert all(grid.numbers(cell) == undisturbed[cell.id] for cell in grid.cells[1:])


def test_a_finished_lane_keeps_its_last_checkpoint_if_asked(home, one_device, tmp_path):
    grid = Grid(home, tmp_path, axis("optimizer.peak_lr", [0.001, 0.01]))
    grid.run(keep=True)
    for cell in grid.cells:
        path, numbers = grid.path(cell), grid.numbers(cell)
        result = records.read_result(path / "result.json")
        assert runs.steps_saved(path) == [result.optimizer_steps] and (path / "tokenizer").exists()
        (path / "result.json").unlink()
        again = run.train(cell.config, path)  # nothing is left to train
        assert again.validation_loss_nats == pytest.approx(result.validation_loss_nats, rel=1e-6)
        assert grid.numbers(cell) == numbers
    assert not list(grid.directory.path.glob("groups/*/checkpoints"))


def test_groups_contain_only_selected_cells_and_no_skipped_ones(home, one_device, tmp_path):
    grid = Grid(home, tmp_path, axis("optimizer.peak_lr", [0.001, 0.01]), axis("train.seed", [1, 2, 3]))
    *chosen, skipped = grid.cells[:5]

    def skip(running: set[str]) -> None:
        if not (grid.path(skipped) / "skipped.json").exists():
            grid.directory.mark(skipped.id, "skipped", {"error": "in time"})

    grid.run([*chosen, skipped], on_change=skip)
    assert grid.statuses == ["done"] * 4 + ["skipped", "missing"]
    assert not (grid.path(grid.cells[5])).exists() and not (grid.path(skipped) / "metrics.jsonl").exists()


def test_a_group_reports_its_running_cells_and_locks_their_directories(home, one_device, tmp_path):
    grid = Grid(home, tmp_path, RATES)
    heard = []

    def on_change(running: set[str]) -> None:
        heard.append(running)
        for cell in grid.cells:
            if cell.id in running:
                with pytest.raises(UserError, match="another process is training"):
                    run.train(cell.config, grid.path(cell))

    grid.run(on_change=on_change)
    ids = [cell.id for cell in grid.cells]
    assert heard[0] == set(ids) and heard[-1] == set() and len(heard) > 10
    assert heard[-6] == set(ids[:2])  # the third has diverged


def test_a_cell_that_another_process_trains_is_not_started(home, one_device, tmp_path):
    grid = Grid(home, tmp_path, RATES)
    with workdir.locked(grid.directory.cell(grid.cells[0].id), grid.cells[0].config):
        grid.run()
        assert grid.statuses == ["missing", "done", "diverged"]
    grid.run()
    assert grid.statuses == ["done", "done", "diverged"]


@pytest.mark.parametrize(
    ("error", "words", "attempts"),
    [
        (RuntimeError("boom"), "RuntimeError: boom", 3),
        (jax.errors.JaxRuntimeError(FULL), "choose fewer runs with --lanes", 1),
    ],
)
def test_a_failed_group_is_reported_by_its_cells_and_the_others_run(
    home, one_device, tmp_path, monkeypatch, error, words, attempts
):
    grid = Grid(home, tmp_path, RATES, SEEDS)
    bad, loop, begun = {cell.id for cell in grid.cells[:4]}, Trainer._loop, []

    def broken(self, *arguments):
        ids = {run.workdir.path.name for run in filter(None, self._runs)}
        begun.append(ids)
        if ids & bad:
            raise error
        return loop(self, *arguments)

    monkeypatch.setattr(Trainer, "_loop", broken)
    grid.run()
    assert begun == [bad] * attempts + [{cell.id for cell in grid.cells[4:]}]
    for cell in grid.cells:
        if cell.id in bad:
            state = grid.directory.state(cell.id)
            assert state.status == "failed" and words in state.error and f"({attempts} attempts)" in state.error
            assert str(words) in grid.directory.log(cell.id).read_text()
    assert sorted(grid.statuses[4:]) == ["diverged", "diverged"]


def test_a_group_resumes_on_another_number_of_devices(home, undisturbed, tmp_path, monkeypatch):
    grid = Grid(home, tmp_path, RATES, SEEDS)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    grid.run(polls=6)
    assert set(grid.statuses) == {"missing"}
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    grid.run(grid.cells[:4])
    for cell in grid.cells[:4]:
        ours, theirs = ([r["loss_nats"] for r in n] for n in (grid.numbers(cell), undisturbed[cell.id]))
        np.testing.assert_allclose(np.array(ours, float), np.array(theirs, float), rtol=2e-5)


def test_one_process_measures_the_number_of_lanes_and_saves_it(home, one_device, tmp_path, monkeypatch):
    grid = Grid(home, tmp_path, RATES)
    measured = []

    def choose(plan, most, devices):
        with open(grid.directory.path / "groups" / ".lock") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        measured.append(most)
        return 4

    monkeypatch.setattr(lanes, "choose_lanes", choose)
    for chosen in (grid.cells[:1], grid.cells):
        grid.run(chosen, lanes=None, polls=2)
    assert measured == [3] and list(json_files.read(grid.directory.path / "lanes.json").values()) == [4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.batch_size_schedule": "640:4", "train.batch_size_lr_rule": "none"}, "its batch size changes"),
        ({"mesh.data": 2}, "its mesh has more than one device"),
    ],
)
def test_a_cell_that_cannot_share_a_program_is_an_error_before_the_start(home, tmp_path, changes, words):
    config = runs.tiny_config(home, changes)
    grid = axis("train.seed", [1, 2])
    first = enumerate_cells(config, grid)[0]
    with pytest.raises(UserError, match=rf"cell {first.id} \(seed=1\) cannot share a program with others: {words}"):
        command.sweep(config, grid, tmp_path / "sweep", options=command.Options(engine="lanes", lanes=4))
    assert not (tmp_path / "sweep").exists()


def test_ignored_settings_are_reported(home):
    def said(changes: dict) -> str:
        return engines.left_out(enumerate_cells(runs.tiny_config(home, changes), axis("train.seed", [1])))

    assert said({}) == ""
    both = {"records.wandb": "offline", "train.sample_tokens": 5}
    assert said(both).endswith(": W&B, sampled text (train.sample_tokens)")


def test_a_round_without_progress_is_followed_by_a_pause(home, tmp_path, monkeypatch):
    grid = Grid(home, tmp_path, axis("train.seed", [1]))
    happened = []

    class Busy:
        size = 1

        def run(self, tasks, on_change, stop):
            happened.append("round")
            if happened.count("round") == 3:
                grid.directory.mark(grid.cells[0].id, "failed", {"error": "at last"})

    monkeypatch.setattr(grid_run.time, "sleep", lambda secs: happened.append("pause"))
    sweep = grid_run.SweepPlan(grid.directory, grid.cells, grid.cells, grid.plans)
    grid_run.run(sweep, Busy(), lambda line: None, Stop())
    assert happened == ["round", "pause", "round", "pause", "round"]


# --- the command


@pytest.fixture(scope="module")
def swept(home, tmp_path_factory) -> tuple[Path, Path]:
    """Return a grid, and the directory of an uninterrupted sweep of it by lanes."""
    path = tmp_path_factory.mktemp("swept")
    config = grid_file(home, path / "grid.py", mesh__data=1, mesh__tensor=1, train__checkpoint_every_secs=0.0)
    done = sweep(config, path / "sweep", "--engine=lanes", "--lanes=2")
    assert done.returncode == 0, done.stderr
    return config, path / "sweep"


def test_the_lane_engine_leaves_the_same_table(swept, tmp_path):
    config, workdir = swept
    done = sweep(config, tmp_path, "--engine=local")
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(test_sweep.table(workdir), test_sweep.table(tmp_path), strict=True):
        assert (ours["id"], ours["status"], ours["tokens"]) == (theirs["id"], theirs["status"], theirs["tokens"])
        if ours["status"] == "done":
            assert float(ours["validation_loss_nats"]) == pytest.approx(float(theirs["validation_loss_nats"]), rel=2e-5)
    assert not list(workdir.glob("groups/*/group.json"))


def test_a_lane_sweep_killed_at_random_moments_has_bitwise_the_same_table(swept, tmp_path):
    config, undisturbed = swept
    chance = random.Random(0)
    saved = lambda: set(tmp_path.glob("groups/*/checkpoints/[0-9]*"))
    for _ in range(3):
        before = saved()
        process = test_sweep.start(config, tmp_path, "--engine=lanes", "--lanes=2")
        runs.wait_until(process, lambda before=before: bool(saved() - before))
        time.sleep(chance.uniform(0, 1.5))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    done = sweep(config, tmp_path, "--engine=lanes", "--lanes=2")
    assert done.returncode == 0, done.stderr
    assert test_sweep.table(tmp_path) == test_sweep.table(undisturbed)
    for cell in undisturbed.glob("cells/*"):
        assert runs.numbers(tmp_path / "cells" / cell.name) == runs.numbers(cell)
