"""Tiny complete runs of the train command: a corpus of a few hundred sentences and a model of 28,672 parameters.

To use the fixtures, a module assigns `home, reference = runs.home, runs.reference`. All workers of a test session share
one directory with the corpus, the dataset, the compiled programs and an uninterrupted reference run.
"""

import dataclasses
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_specs import sentences

from smallbatch import config as configs
from smallbatch.files.locks import locked
from smallbatch.runs import records

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "model.width": 32,
    "model.layers": 1,
    "model.head_width": 16,
    "model.context_tokens": 32,
    "optimizer.t2_tokens": 3000.0,
    "train.batch_size": 2,
    "train.budget_tokens": 1280,
    "train.log_every_tokens": 64,  # every step
    "train.steps_per_dispatch": 5,
    "train.sample_tokens": 0,
    "train.checkpoint_every_secs": 3600.0,
    "mesh.data": 1,
    "mesh.tensor": 1,
}
# 150 steps, a record every 5, validation every 50, and as many checkpoints as possible.
LONG = {
    "train.budget_tokens": 9600,
    "train.log_every_tokens": 320,
    "train.validate_every_tokens": 3200,
    "train.checkpoint_every_secs": 0.0,
    "train.sample_tokens": 4,
}
NOT_REPEATED = (
    "secs",
    "tokens_per_sec",
    "started",
    "finished",
    "peak_memory_bytes",
    "git_sha",
    "git_dirty",
    "directory",
)


@pytest.fixture(scope="session")
def home(tmp_path_factory, worker_id) -> Path:
    """A directory with corpus.jsonl and a cache, the same for every worker; JAX runs, on the devices of conftest."""
    import jax

    assert jax.device_count() == 8
    base = tmp_path_factory.getbasetemp()
    directory = (base if worker_id == "master" else base.parent) / "runs"
    directory.mkdir(exist_ok=True)
    with locked(directory / "lock"):
        if not (directory / "corpus.jsonl").exists():
            write_jsonl(directory / "corpus.jsonl", sentences(300))
    return directory


@pytest.fixture(scope="session")
def reference(home) -> Path:
    """The directory of an undisturbed run of LONG; for reading and copying only."""
    directory = home / "reference"
    with locked(home / "lock"):
        if not (directory / "result.json").exists():
            done = command(home, LONG, directory)
            assert done.returncode == 0, done.stderr
    return directory


def write_jsonl(path: Path, documents: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))


def settings(home: Path, changes: dict) -> dict:
    files = {"data.source": f"text:{home}/corpus.jsonl", "data.cache_dir": str(home / "cache")}
    return TINY | files | changes


def tiny_config(home: Path, changes: dict):
    """Return the validated config of a tiny run."""
    config = configs.quickstart()
    for key, value in settings(home, changes).items():
        section, _, name = key.partition(".")
        config[section][name] = value
    configs.validate(config)
    return config


def words(home: Path, changes: dict, workdir: Path) -> list[str]:
    """Return the command line of a tiny run."""
    return [f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in settings(home, changes).items())]


def start(home: Path, changes: dict, workdir: Path, *more: str, prefix: tuple[str, ...] = (), **options):
    """Start the train command as a process."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    argv = [*prefix, sys.executable, "-m", "smallbatch.train", *words(home, changes, workdir), *more]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(argv, env=environment, **options)


def command(home: Path, changes: dict, workdir: Path, *more: str, **options) -> subprocess.CompletedProcess:
    """Run the train command to its end."""
    process = start(home, changes, workdir, *more, **options)
    out, err = process.communicate(timeout=900)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def in_process(monkeypatch, capsys, argv: list[str]) -> subprocess.CompletedProcess:
    """Run the train command in this process, which is faster than starting one."""
    monkeypatch.setattr(sys, "argv", ["train", *argv])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of runpy, for a module that is imported already
        runpy.run_module("smallbatch.train", run_name="__main__")
    code = exit_info.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(argv, code, *capsys.readouterr())


def trained(home: Path, workdir: Path, changes: dict) -> tuple[records.Result, list[dict]]:
    """Train in this process; return the result and the records without wall-clock fields."""
    from smallbatch.training import run

    result = run.train(tiny_config(home, changes), workdir)
    return result, numbers(workdir)


def numbers(workdir: Path, kind: str | None = None) -> list[dict]:
    """Return a run's records without wall-clock fields."""
    read = records.read_metrics(workdir / "metrics.jsonl", kind)
    return [{k: v for k, v in record.items() if k not in records.WALL_CLOCK_FIELDS} for record in read]


def train_losses(found: list[dict]) -> np.ndarray:
    return np.array([record["loss_nats"] for record in found if record["kind"] == "train"])


def result_of(workdir: Path) -> dict:
    """Return result.json without the fields that differ between repetitions."""
    result = dataclasses.asdict(records.read_result(workdir / "result.json"))
    return {key: value for key, value in result.items() if key not in NOT_REPEATED}


def final_state(home: Path, changes: dict, workdir: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a run's last checkpoint."""
    import jax

    from smallbatch.training import run
    from smallbatch.training.checkpoint import Checkpoints
    from smallbatch.training.program import train_program

    abstract = train_program(run.make_plan(tiny_config(home, changes)).program()).abstract_state
    restored = Checkpoints(workdir / "checkpoints").restore(abstract)
    assert restored is not None
    leaves, _ = jax.tree.flatten_with_path(restored[0])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def steps_saved(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


def unfinished(reference: Path, workdir: Path, keep: int = 2) -> None:
    """Copy a finished run as if it had crashed just before writing result.json, with its `keep` oldest checkpoints."""
    shutil.copytree(reference, workdir)
    (workdir / "result.json").unlink()
    for step in steps_saved(workdir)[keep:]:
        shutil.rmtree(workdir / "checkpoints" / str(step))


def wait_until(process: subprocess.Popen, happened: Callable[[], bool], secs: float = 900.0) -> bool:
    """Wait until `happened()` is true; return False if the process ended first."""
    deadline = time.monotonic() + secs
    while time.monotonic() < deadline:
        if happened():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    raise AssertionError("timeout: the condition was not met, and the process did not end")


def record_count(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


class StopAtPoll:
    """A stop that is requested when it is polled for the nth time, like a signal between two polls."""

    notice = None

    def __init__(self, number: int) -> None:
        self._left = number

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left < 0
