"""A lane of a group is the run that it would be alone, whatever its neighbours do and however often it is stopped."""

from pathlib import Path

import numpy as np
import pytest
import runs
import test_sweep
from test_sweep import grid_file, sweep

from smallbatch import records
from smallbatch.training import lanes, run
from smallbatch.training.lanes import LaneTrainer, choose_lanes, compiled_lanes, shape_of

home = runs.home

VARIED = [
    {"optimizer.peak_lr": 0.01},
    {"optimizer.peak_lr": 0.03, "train.seed": 7},
    {"optimizer.peak_lr": 1e5},  # diverges
    {"optimizer.t2_tokens": 500.0, "optimizer.weight_decay": 0.1, "train.seed": 2**31 + 5},
]
BASE = {"train.validate_every_tokens": 640, "train.checkpoint_every_secs": 0.0}


@pytest.fixture(scope="module")
def plans(home):
    return [run.make_plan(runs.tiny_config(home, BASE | changes)) for changes in VARIED]


@pytest.fixture(scope="module")
def dataset(plans):
    return run.prepare.prepare(plans[0].data)


def train(plans, dataset, path: Path, lane_count: int = 4, devices: int = 1, stop=lambda: False) -> list[Path]:
    paths = [path / str(i) for i in range(len(plans))]
    for one in paths:
        one.mkdir(parents=True, exist_ok=True)
    LaneTrainer(plans, paths, path / "group", dataset, lane_count, devices, 0.0).run(stop)
    return paths


@pytest.fixture(scope="module")
def group(plans, dataset, tmp_path_factory) -> list[Path]:
    return train(plans, dataset, tmp_path_factory.mktemp("group"))


def test_a_lane_equals_the_same_run_alone_and_a_diverged_one_touches_no_other(home, group, tmp_path):
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


def test_a_group_that_is_stopped_at_every_step_ends_with_the_same_numbers(group, plans, dataset, tmp_path):
    looks = 0

    def stop_at_third_look() -> bool:
        nonlocal looks
        looks += 1
        return looks % 3 == 0

    for _ in range(20):
        paths = train(plans, dataset, tmp_path, stop=stop_at_third_look)
        if (paths[0] / "result.json").exists():
            break
    assert looks > 10
    for ours, theirs in zip(paths, group, strict=True):
        assert runs.numbers(ours) == runs.numbers(theirs)


def test_lanes_on_eight_devices_and_lanes_without_a_run_change_nothing(group, plans, dataset, tmp_path):
    paths = train(plans, dataset, tmp_path, lane_count=8, devices=8)
    for ours, theirs in zip(paths, group, strict=True):
        a, b = runs.train_losses(runs.numbers(ours)), runs.train_losses(runs.numbers(theirs))
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=2e-5)
    programs = compiled_lanes(plans[0].program, 8, 8)
    text = programs.chunk.as_text()
    assert not [word for word in ("all-reduce(", "all-gather(", "collective-permute(") if word in text]
    assert len(programs.abstract_state.params["embed_VxD"].sharding.device_set) == 8


def test_plans_that_differ_in_more_than_hyperparameters_are_no_lanes_of_one_program(home, plans):
    assert len({shape_of(plan) for plan in plans}) == 1
    for changes in ({"train.batch_size": 4}, {"optimizer.name": "sgd", "optimizer.b1": None,
                    "optimizer.t2_tokens": None}, {"train.budget_tokens": 640}, {"data.shuffle_seed": 1}):  # fmt: skip
        assert shape_of(run.make_plan(runs.tiny_config(home, BASE | changes))) != shape_of(plans[0])


def test_the_number_of_lanes_is_measured_and_bounded_by_memory(plans, monkeypatch):
    assert choose_lanes(plans[0], most=4, devices=1, secs=0.05) in (1, 2, 4)
    monkeypatch.setattr(lanes, "device_memory_bytes", lambda device: 1)
    assert choose_lanes(plans[0], most=4, devices=1, secs=0.05) == 1


def test_the_lane_engine_leaves_the_same_table(home, tmp_path):
    config = grid_file(home, tmp_path / "grid.py", mesh__data=1, mesh__tensor=1)
    tables = []
    for engine in (["--engine=lanes", "--lanes=2"], ["--engine=local"]):
        done = sweep(config, tmp_path / engine[0], *engine)
        assert done.returncode == 0, done.stderr
        tables.append(test_sweep.table(tmp_path / engine[0]))
    for ours, theirs in zip(*tables, strict=True):
        assert (ours["id"], ours["status"], ours["tokens"]) == (theirs["id"], theirs["status"], theirs["tokens"])
        if ours["status"] == "done":
            assert float(ours["validation_loss_nats"]) == pytest.approx(float(theirs["validation_loss_nats"]), rel=2e-5)
    assert not list((tmp_path / "--engine=lanes").glob("groups/*"))
