"""A cell is tried three times without progress, at once; one that another process holds comes back a while later."""

import pytest

from smallbatch import config as configs
from smallbatch.grid import tasks
from smallbatch.grid.cells import enumerate_cells
from smallbatch.grid.local_engine import LocalEngine
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.grid.tasks import Task, Waiting

LOST = {"status": "failed", "error": "the node is gone", "again": True}


@pytest.fixture
def directory(tmp_path):
    return SweepDirectory(tmp_path)


@pytest.fixture
def task():
    (cell,) = enumerate_cells(configs.quickstart(), ({"train.seed": 1},))
    return Task(cell, "program")


def comes_back(waiting: Waiting, task: Task, answer: dict) -> bool:
    waiting.answered(waiting.take(task), answer)
    return bool(waiting.due())


def test_a_cell_is_given_up_after_three_attempts_that_saved_nothing_new(directory, task):
    waiting, cell = Waiting([task], directory), directory.cell(task.cell.id)
    for step in (0, 10, 20):
        (cell.checkpoints / str(step)).mkdir(parents=True)
        assert comes_back(waiting, task, LOST) and comes_back(waiting, task, LOST)
    (cell.checkpoints / "30.tmp").mkdir()
    assert not comes_back(waiting, task, LOST)
    assert directory.state(task.cell.id).error == "the node is gone (3 attempts)"


def test_a_mistake_of_the_person_is_not_tried_again(directory, task):
    assert not comes_back(Waiting([task], directory), task, LOST | {"again": False})
    assert directory.state(task.cell.id).status == "failed"


def test_a_cell_that_another_process_holds_comes_back_after_a_while(directory, task, monkeypatch):
    waiting = Waiting([task], directory)
    now = tasks.time.monotonic()
    monkeypatch.setattr(tasks.time, "monotonic", lambda: now)
    assert not comes_back(waiting, task, {"status": "busy"})
    now += tasks.BUSY_SECS + 0.1
    assert waiting.due() == [task] and directory.state(task.cell.id).status == "missing"
    assert not comes_back(waiting, task, {"status": "done"})


def test_a_worker_that_dies_before_its_cell_begins_leaves_what_it_said(directory, task, monkeypatch):
    monkeypatch.setattr(tasks, "ATTEMPTS", 1)
    engine = LocalEngine(directory, [[0]])
    engine.run([task], lambda running: None, lambda: False)  # there is no grid.json
    error = directory.state(task.cell.id).error
    assert error and error.startswith("the worker ended with exit code 1; what it said: ")
    (log,) = directory.path.glob("worker-*.txt")
    assert str(log) in error and "it has no grid.json" in log.read_text()
    assert not directory.log(task.cell.id).exists()
