"""Each notebook is executed in a kernel, on a tiny corpus and with small settings."""

import base64
import math
import os
import shlex
import signal
import threading
import time
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import runs

from smallbatch.files import json_files
from smallbatch.runs import records

pytestmark = pytest.mark.slow

home = runs.home

NOTEBOOKS = sorted((runs.ROOT / "launch" / "colab").glob("*.ipynb"))
SMALL = {
    "train_at_batch_size_1": {"BUDGET_TOKENS": 8192, "RUNS": "runs"},
    "find_your_batch_size": {
        "BATCH_SIZES": [1, 4], "FACTORS": [0.5, 1, 2], "SEEDS": 2, "BUDGET_TOKENS": 2048, "SWEEP": "sweep",
    },
}  # fmt: skip
SET_IN_NOTEBOOKS = ("optimizer.t2_tokens", "train.batch_size", "train.budget_tokens", "train.log_every_tokens")


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def shortened(name: str, home: Path) -> nbformat.NotebookNode:
    """Return a notebook without its install cell, and with small settings."""
    notebook = read(runs.ROOT / "launch" / "colab" / f"{name}.ipynb")
    notebook.cells = [cell for cell in notebook.cells if cell not in tagged(notebook, "install")]
    (parameters,) = tagged(notebook, "parameters")
    more = {key: value for key, value in runs.settings(home, {}).items() if key not in SET_IN_NOTEBOOKS}
    for variable, value in (SMALL[name] | {"MORE": more}).items():
        assert f"{variable} = " in parameters.source, variable
        parameters.source += f"\n{variable} = {value!r}"
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_install_cell_keeps_the_loaded_numpy(path):
    (cell,) = tagged(read(path), "install")
    before, _, pip = cell.source.partition("%pip install ")
    names: dict = {}
    exec(before, names)
    assert {"--upgrade", f"numpy=={np.__version__}", "jax", "smallbatch.zip"} <= set(shlex.split(pip.format(**names)))


def executed(name: str, home: Path, directory: Path) -> nbformat.NotebookNode:
    notebook = shortened(name, home)
    client(notebook, directory).execute()
    return notebook


def client(notebook: nbformat.NotebookNode, directory: Path) -> nbclient.NotebookClient:
    return nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(directory)}}
    )


def printed(notebook: nbformat.NotebookNode, stream: str = "stdout") -> str:
    return "".join(out.text for cell in notebook.cells for out in cell.get("outputs", []) if out.get("name") == stream)


def pictures(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    shown = [out for cell in notebook.cells for out in cell.get("outputs", []) if "data" in out]
    return [out.data[kind] for out in shown if kind in out.data]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_no_outputs_and_two_tagged_cells(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stem in SMALL
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert [cell for cell in code if "%pip install" in cell.source] == tagged(notebook, "install") == code[:1]
    assert tagged(notebook, "parameters") == code[1:2]
    assert notebook.cells[0].source.startswith("# ")


def test_train_at_batch_size_1_trains_three_runs_and_plots_them(home, tmp_path):
    notebook = executed("train_at_batch_size_1", home, tmp_path)
    for name, batch_size in (("adam_1", 1), ("adam_16", 16), ("sgd_1", 1)):
        result = records.read_result(tmp_path / "runs" / name / "result.json")
        assert result.status == "done" and result.batch_size == batch_size and result.tokens == 8192
        assert math.isfinite(result.validation_loss_nats or math.nan)
        assert f"{result.validation_loss_nats:.3f}" in printed(notebook)
    drawn = [base64.b64decode(picture) for picture in pictures(notebook, "image/png")]
    assert len(drawn) == 2 and all(picture.startswith(b"\x89PNG") for picture in drawn)
    assert "1 sequences = 32 tokens per update" in printed(notebook)  # the plan
    progress = printed(notebook, "stderr")
    assert "compiling" in progress and "\rtrain  100%" in progress


def test_find_your_batch_size_sweeps_and_reports(home, tmp_path):
    notebook = executed("find_your_batch_size", home, tmp_path)
    report = tmp_path / "sweep" / "report"
    assert (report / "index.html").exists() and list(report.glob("figures/loss-*.svg"))
    rows = (tmp_path / "sweep" / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 12 and all(",done," in row for row in rows[1:])
    assert "12 runs of 2,048 tokens" in printed(notebook)
    assert json_files.read(report / "summary.json")["findings"]
    assert len(pictures(notebook, "image/png")) == 1
    (shown,) = pictures(notebook, "text/html")
    assert shown.count("data:image/svg+xml;base64,") >= 2
    assert "\rsweep  " in printed(notebook, "stderr")


STOPPED = """
import jax

jax.devices()  # JAX has started, as in a session in use
from smallbatch import config
from smallbatch.training.run import train

c = config.quickstart()
c.update_from_flattened_dict({changes})
for c.train.batch_size in (1, 2):
    result = train(c)
    print("batch", result.batch_size, result.status, len(result.curve()["tokens"]))
"""


def test_stopped_cell_is_saved_and_resumes(home, tmp_path):
    changes = runs.settings(home, {"mesh.data": None, "mesh.tensor": None, "train.budget_tokens": 32_000})
    cell = nbformat.v4.new_code_cell(STOPPED.replace("{changes}", repr(changes)))
    notebook = nbformat.v4.new_notebook(cells=[cell])

    def stop_when_it_trains() -> None:  # like the stop button of a notebook
        deadline = time.monotonic() + 500
        while time.monotonic() < deadline and not any(map(runs.record_count, tmp_path.glob("runs/*"))):
            time.sleep(0.01)
        os.kill(stopped.km.provisioner.pid, signal.SIGINT)

    stopped = client(notebook, tmp_path)
    stopped.on_cell_execute = lambda **_: threading.Thread(target=stop_when_it_trains, daemon=True).start()
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="stopped and saved after update"):
        stopped.execute()
    assert "batch" not in printed(notebook)  # batch size 2 did not start
    (directory,) = (tmp_path / "runs").iterdir()
    assert records.read_result(directory / "result.json").status == "stopped"

    client(notebook, tmp_path).execute()
    assert printed(notebook).splitlines() == ["batch 1 done 500", "batch 2 done 500"]
    assert "resuming after update" in printed(notebook, "stderr")
