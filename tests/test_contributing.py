"""The examples of CONTRIBUTING.md work as written, in a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from data_specs import sentences

pytestmark = pytest.mark.slow

PAGE = (runs.ROOT / "CONTRIBUTING.md").read_text()


def perform(title: str, copy: Path) -> None:
    """Write the new file of a section of CONTRIBUTING.md and add its entry to the table that the section names."""
    (text,) = [part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE) if part.startswith(title)]
    new_file = re.findall(r"Write `(.*?)`", text)[0]
    ((table, table_file),) = re.findall(r"to `([A-Z]+)` in `(.*?)`", text)
    code, entry = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (copy / new_file).write_text(code)
    source, count = re.subn(
        rf"^({table}\b.*[({{]\n)", rf"\1{entry}", (copy / table_file).read_text(), flags=re.MULTILINE
    )
    assert count == 1, f"{table_file} has {count} tables {table}"
    if "with its import" in text:
        package, module = ".".join(Path(new_file).parent.parts), Path(new_file).stem
        source = source.replace(f"\n{table} =", f"\nfrom {package} import {module}\n\n{table} =")
    (copy / table_file).write_text(source)


def command(copy: Path, name: str, *words: str) -> str:
    """Run a command of the copy and return its output."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(copy)}
    argv = [sys.executable, "-m", f"smallbatch.{name}", *words]
    done = subprocess.run(argv, env=environment, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(runs.ROOT / "smallbatch", tmp_path / "smallbatch", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_optimizer_and_the_source_of_the_examples_train(copy):
    perform("Add an optimizer", copy)
    perform("Add a data source", copy)
    for name, texts in (("one", sentences(100)), ("two", sentences(200)[100:]), ("three", sentences(240)[200:])):
        (copy / "books" / name).mkdir(parents=True)
        (copy / "books" / name / "part.txt").write_text("\n".join(texts))
    changes = {key: value for key, value in runs.TINY.items() if key != "optimizer.t2_tokens"}
    changes |= {
        "data.source": f"folders:{copy}/books",
        "data.cache_dir": f"{copy}/cache",
        "optimizer.name": "normalized_sgd",
        "optimizer.peak_lr": 0.1,
        "optimizer.b1": None,
        "optimizer.t2_tokens": None,
    }
    words = [f"--config.{key}={value}" for key, value in changes.items()]
    command(copy, "train", f"--workdir={copy}/run", *words)
    assert json.loads((copy / "run" / "plan.json").read_text())["optimizer"]["name"] == "normalized_sgd"
    assert json.loads((copy / "run" / "result.json").read_text())["status"] == "done"


def test_the_section_of_the_example_is_on_the_page(copy):
    perform("Add a section to the report", copy)
    rows = "batch_size,loss_nats,seed\n1,3.0,0\n1,3.1,1\n4,3.2,0\n4,3.3,1\n"
    (copy / "runs.csv").write_text(rows)
    output = command(copy, "report", f"--csv={copy}/runs.csv", f"--out={copy}/report")
    sentence = "Every method has at least 2 seeds at every batch size."
    assert sentence in output
    assert sentence in (copy / "report" / "index.html").read_text()
    assert (copy / "report" / "seeds.csv").exists()
