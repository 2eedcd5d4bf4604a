"""A cell is given up after three attempts that saved nothing new, or at once where another cannot help."""

from smallbatch import config as configs
from smallbatch.grid.cells import enumerate_cells
from smallbatch.grid.directory import SweepDirectory
from smallbatch.grid.tasks import Failures, Task

LOST = {"status": "failed", "error": "the node is gone", "again": True}


def test_a_cell_is_given_up_after_three_attempts_that_saved_nothing_new(tmp_path):
    directory = SweepDirectory(tmp_path)
    (cell,) = enumerate_cells(configs.quickstart(), ({"train.seed": 1},))
    task, failures = Task(cell, "program"), Failures(directory)
    assert not failures.again(task, {"status": "busy"}) and directory.state(cell.id).status == "missing"
    for step in (0, 10, 20):
        (directory.cell(cell.id).checkpoints / str(step)).mkdir(parents=True)
        assert failures.again(task, LOST) and failures.again(task, LOST)
    (directory.cell(cell.id).checkpoints / "30.tmp").mkdir()
    assert not failures.again(task, LOST)
    assert directory.state(cell.id).error == "the node is gone (3 attempts)"


def test_a_mistake_of_the_person_is_not_tried_again(tmp_path):
    directory = SweepDirectory(tmp_path)
    (cell,) = enumerate_cells(configs.quickstart(), ({"train.seed": 1},))
    assert not Failures(directory).again(Task(cell, "program"), LOST | {"again": False})
    assert directory.state(cell.id).status == "failed"
