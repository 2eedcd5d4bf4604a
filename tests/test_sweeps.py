"""Reading sweeps: the run table has every planned cell with its status, and damaged files are noted."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import runs
from grids import BUDGET_TOKENS, CONTEXT_TOKENS, Basin, Cell, basin_cells, replaced, write_run, write_sweep

from smallbatch.analysis import hardware
from smallbatch.analysis.read import sweeps
from smallbatch.analysis.read.gradient_records import SUCCESSIVE
from smallbatch.errors import UserError
from smallbatch.runs.records import write_json

home, reference = runs.home, runs.reference
OLD_PLAN = '{"hypers": {"peak_lr": 0.25}}'  # before plans had stages


def lrs(*statuses, **values):
    return [
        Cell({"train.batch_size": 4, "optimizer.peak_lr": 0.001 * 2**i, **values}, 2.5 + 0.1 * i, status)
        for i, status in enumerate(statuses)
    ]


def test_every_cell_is_read_with_its_status(tmp_path):
    statuses = ("done", "diverged", "missing", "failed", "cut", "stopped", "skipped")
    table = sweeps.read([write_sweep(tmp_path, lrs(*statuses))])
    assert [run.status for run in table.runs] == ["done", "diverged", "missing", "failed", "cut", "missing", "skipped"]
    assert [run.final_loss_nats for run in table.runs][:2] == [2.5, math.inf]
    assert table.runs[4].final_loss_nats == math.inf  # cut: worse than any finished run
    assert table.runs[6].final_loss_nats == math.inf  # skipped: a lower learning rate diverged
    assert all(math.isnan(table.runs[i].final_loss_nats) for i in (2, 3, 5))
    assert table.provenance[0]["statuses"] == {
        "done": 1,
        "diverged": 1,
        "missing": 2,
        "failed": 1,
        "cut": 1,
        "skipped": 1,
    }


@pytest.mark.parametrize("word", ["stopped", "preempted"])
def test_a_stopped_run_is_missing_also_with_the_status_of_earlier_versions(tmp_path, word):
    assert [run.status for run in sweeps.read([write_sweep(tmp_path, lrs("done", word))]).runs] == ["done", "missing"]


def test_a_run_is_read_with_its_totals_and_curves(tmp_path):
    gradients = {"grad_norm": lambda _: 1.9, "grad_signal_sq": lambda _: 1.0, "grad_noise_sq": lambda _: 12.0}
    cell = Cell({"train.batch_size": 4}, 2.5, validations=5, extra=gradients)
    (run,) = sweeps.read([write_sweep(tmp_path, [cell])]).runs
    assert (run.batch_size, run.seed, run.tokens, run.params, run.context_tokens) == (4, 0, BUDGET_TOKENS, 851_968, 256)
    assert run.steps == BUDGET_TOKENS / CONTEXT_TOKENS / 4 and run.learning_rate == 0.003
    assert len(run.training.tokens) == 20 and len(run.validation.tokens) == 5
    assert run.training.secs[-1] == pytest.approx(BUDGET_TOKENS / 1e5 * 39 / 40)
    means = {"grad_norm": 1.9, "grad_signal_sq": 1.0, "grad_noise_sq": 12.0}
    assert run.gradients == pytest.approx(means | {"grad_norm_sq": 1 + 12 / 4})


def test_run_directories_and_folders_of_them_are_read(tmp_path):
    for i, cell in enumerate(lrs("done", "diverged", "missing")):
        write_run(tmp_path / "folder" / f"run-{i}", cell)
    (tmp_path / "folder" / "notes").mkdir()
    assert [run.status for run in sweeps.read([tmp_path / "folder"]).runs] == ["done", "diverged"]
    (run,) = sweeps.read([tmp_path / "folder" / "run-0"]).runs
    assert run.loss_nats == 2.5 and run.arm == "adam" and run.point == ()


def test_a_damaged_file_affects_only_its_cell_and_is_noted(tmp_path):
    path = write_sweep(tmp_path, lrs("done", "done", "done", "done"))
    cells = [path / "cells" / f"{i:06x}" for i in range(4)]
    metrics = cells[0] / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-30])
    (cells[1] / "metrics.jsonl").write_text("rubbish\n")
    (cells[2] / "result.json").write_text('{"status": "do')
    (cells[3] / "result.json").write_text('{"status": "splendid"}')
    table = sweeps.read([path])
    assert [run.status for run in table.runs] == ["done", "done", "missing", "missing"]
    assert len(table.runs[0].training.tokens) == 19 and table.runs[1].training is None
    for words in (
        "ends in an incomplete line",
        "metrics.jsonl:1 is not a record",
        "result.json is damaged",
        "result.json is damaged (status is ",
    ):
        assert any(words in note for note in table.notes), words


def test_results_of_another_version_are_read(tmp_path):
    path = write_sweep(tmp_path, lrs("done"))
    result = path / "cells" / "000000" / "result.json"
    values = json.loads(result.read_text())
    del values["average_validation_loss_nats"]
    result.write_text(json.dumps(values | {"of_the_future": 1}))
    assert sweeps.read([path]).runs[0].loss_nats == 2.5


def test_a_repeated_point_and_seed_counts_once_and_is_noted(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, lrs("done")[0])
    table = sweeps.read([tmp_path])
    assert len(table.runs) == 1 and any("same point and seed" in note for note in table.notes)


@pytest.mark.parametrize("plan", ['{"stages": [{"hyperparams": {"peak_lr": 0.25}}]}', OLD_PLAN])
def test_a_transferred_learning_rate_is_read_from_the_plan(tmp_path, plan):
    path = write_sweep(tmp_path, lrs("done"))
    (path / "cells" / "000000" / "plan.json").write_text(plan)
    assert sweeps.read([path]).runs[0].learning_rate == 0.25


def test_a_real_run_is_read_without_notes(reference):
    table = sweeps.read([reference])
    assert not table.notes and table.runs[0].learning_rate == 0.003


def test_unequal_grids_and_seeds_give_a_matrix_with_nan(tmp_path):
    cells = basin_cells(Basin(), [1], range(-10, -6), [0]) + basin_cells(Basin(), [1], [-9], [1, 2])
    cells += [replaced(cells[0], values={**cells[0].values, "train.batch_size": 16})]
    one, sixteen = sweeps.read([write_sweep(tmp_path, cells)]).groups
    assert one.loss_PxS.shape == (4, 3) and np.isnan(one.loss_PxS).sum() == 6
    assert sixteen.loss_PxS.shape == (1, 1)


def test_two_sweeps_of_one_name_are_two_settings(tmp_path):
    paths = [write_sweep(tmp_path / name, lrs("done")) for name in ("x", "y")]
    assert len(sweeps.read(paths).settings) == 2
    with pytest.raises(UserError, match="given twice"):
        sweeps.read([paths[0], paths[0]])


@pytest.mark.parametrize("content", [None, "", "[]", '{"format": 1}', '{"format": 1, "name": 3}'])
def test_a_sweep_without_grid_json_is_read_from_its_started_cells(tmp_path, content):
    path = write_sweep(tmp_path, lrs("done", "done", "missing"))
    (path / "grid.json").unlink() if content is None else (path / "grid.json").write_text(content)
    table = sweeps.read([path])
    assert [(run.status, run.loss_nats, run.point) for run in table.runs] == [
        ("done", 2.5, (("optimizer.peak_lr", 0.001),)),
        ("done", 2.6, (("optimizer.peak_lr", 0.002),)),
    ]
    (note,) = table.notes
    assert "grid.json" in note and note.endswith("the report includes only the 2 cells that were started")


def test_a_run_without_a_plan_has_the_learning_rate_of_its_config_and_a_note(tmp_path):
    path = write_sweep(tmp_path, lrs("done"))
    (path / "cells" / "000000" / "plan.json").unlink()
    table = sweeps.read([path])
    assert table.runs[0].learning_rate == 0.001
    assert "plan.json" in table.notes[0] and "the learning rate is the value in the config" in table.notes[0]


def test_memory_is_that_of_the_compiled_program_not_of_the_whole_process(tmp_path):
    path = write_sweep(tmp_path, lrs("done", "done"))
    for i, (program_bytes, process_bytes) in enumerate([(30, 500), (20, 600)]):
        result = path / "cells" / f"{i:06x}" / "result.json"
        about = json.loads(result.read_text())
        about |= {"program_memory_bytes": program_bytes, "peak_memory_bytes": process_bytes}
        result.write_text(json.dumps(about))
    (row,) = hardware.hardware(sweeps.read([path]))
    assert row["memory_bytes"] == 25
    (run,) = sweeps.read([path / "cells" / "000001"]).runs
    assert run.program_memory_bytes == 20 and math.isnan(run.peak_memory_bytes)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "contains no sweep"),
        ({"notes.txt": "hello"}, "contains no sweep"),
        ({"grid.json": "{"}, "grid.json is damaged"),
        ({"grid.json": '{"format": 1}'}, "grid.json is damaged"),
        ({"grid.json": '{"format": 2}'}, "has format 2, but this version reads format 1"),
        ({"grid.json": '{"format": 1, "name": "x", "config": {}, "cells": []}'}, "has no cells"),
        ({"grid.json": "[]"}, "grid.json is damaged"),
        ({"config.json": "[]"}, "is damaged"),
    ],
)
def test_an_invalid_sweep_directory_is_a_one_line_error(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words) as raised:
        sweeps.read([tmp_path])
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="there is no directory"):
        sweeps.read([tmp_path / "nowhere"])


def test_runs_with_one_budget_but_different_tokens_are_noted(tmp_path):
    for size in (4, 3, 8):
        write_run(tmp_path / "runs" / f"batch-{size}", Cell({"train.batch_size": size}, 3.0))
    assert not [note for note in sweeps.read([tmp_path / "runs"]).notes if "equal tokens" in note]
    result = tmp_path / "runs" / "batch-3" / "result.json"
    write_json(result, json.loads(result.read_text()) | {"tokens": 1_049_088})
    (note,) = [note for note in sweeps.read([tmp_path / "runs"]).notes if "equal tokens" in note]
    assert note == (
        "runs with a budget of 1,048,576 tokens trained on 1,048,576 to 1,049,088, because it is rounded up to whole "
        "updates; their losses are not at equal tokens"
    )


def test_runs_with_successive_gradient_diagnostics_are_marked(tmp_path):
    cell = Cell({"train.batch_size": 4}, 2.5, extra={"grad_signal_sq": lambda share: 2.0})
    for seed, name in enumerate(("parts", "successive")):
        write_run(directory := tmp_path / "runs" / name, replaced(cell, values=cell.values | {"train.seed": seed}))
        write_json(directory / "plan.json", {"hyperparams": {"peak_lr": 0.003}, "optimizer": {"diagnostics": name}})
    found = sweeps.read([tmp_path / "runs"]).runs
    marked = {Path(run.source).name: SUCCESSIVE in run.gradients for run in found}
    assert marked == {"parts": False, "successive": True}
