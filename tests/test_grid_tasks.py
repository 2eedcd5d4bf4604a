"""A failed cell is retried at once, three times without progress; a busy cell is retried after a pause."""

import pytest

from smallbatch import config as configs
from smallbatch.grid import tasks
from smallbatch.grid.cells import enumerate_cells
from smallbatch.grid.local_engine import LocalEngine
from smallbatch.grid.sweep_dir import SweepDirectory
from smallbatch.grid.tasks import Task, TaskQueue

LOST = {"status": "failed", "error": "the node is gone", "again": True}


@pytest.fixture
def directory(tmp_path):
    return SweepDirectory(tmp_path)


@pytest.fixture
def task():
    (cell,) = enumerate_cells(configs.quickstart(), ({"train.seed": 1},))
    return Task(cell, "program")


def is_retried(waiting: TaskQueue, task: Task, outcome: dict) -> bool:
    waiting.finish(waiting.take(task), outcome)
    return bool(waiting.due())


def test_a_cell_fails_after_three_attempts_without_a_new_checkpoint(directory, task):
    waiting, cell = TaskQueue([task], directory), directory.cell(task.cell.id)
    for step in (0, 10, 20):
        (cell.checkpoints / str(step)).mkdir(parents=True)
        assert is_retried(waiting, task, LOST) and is_retried(waiting, task, LOST)
    (cell.checkpoints / "30.tmp").mkdir()
    assert not is_retried(waiting, task, LOST)
    assert directory.state(task.cell.id).error == "the node is gone (3 attempts)"


def test_a_usage_error_is_not_retried(directory, task):
    assert not is_retried(TaskQueue([task], directory), task, LOST | {"again": False})
    assert directory.state(task.cell.id).status == "failed"


def test_a_busy_cell_is_retried_after_a_pause(directory, task, monkeypatch):
    waiting = TaskQueue([task], directory)
    now = tasks.time.monotonic()
    monkeypatch.setattr(tasks.time, "monotonic", lambda: now)
    assert not is_retried(waiting, task, {"status": "busy"})
    now += tasks.BUSY_SECS + 0.1
    assert waiting.due() == [task] and directory.state(task.cell.id).status == "missing"
    assert not is_retried(waiting, task, {"status": "done"})


def test_a_worker_that_dies_before_its_cell_starts_leaves_its_output(directory, task, monkeypatch):
    monkeypatch.setattr(tasks, "ATTEMPTS", 1)
    engine = LocalEngine(directory, [[0]])
    engine.run([task], lambda running: None, lambda: False)  # there is no grid.json
    error = directory.state(task.cell.id).error
    assert error and error.startswith("the worker ended with exit code 1; its output: ")
    (log,) = directory.path.glob("worker-*.txt")
    assert str(log) in error and "it has no grid.json" in log.read_text()
    assert not directory.log(task.cell.id).exists()
