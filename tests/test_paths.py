"""User paths: `~` is expanded, an address is rejected before any file is written, and each error is one line."""

import os
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from data_specs import data_spec
from test_records import RESULT

from smallbatch import config as configs
from smallbatch.data import prepare, source_text, source_tfds, sources
from smallbatch.data.corpus_files import Skipped
from smallbatch.errors import UserError
from smallbatch.files import paths
from smallbatch.grid import command as grid_command
from smallbatch.grid.axes import axis
from smallbatch.runs import records
from smallbatch.training import run as training_run

LONG = "a" * 300


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory; the working directory is another one, empty."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command of smallbatch as `python -m` does, in this process: words -> (exit code, stdout, stderr)."""

    def command(name: str, *words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of runpy, for a module that is imported already
            runpy.run_module(f"smallbatch.{name}", run_name="__main__", alter_sys=False)
        return ended.value.code, *capsys.readouterr()

    return command


def finished_run(directory: Path) -> Path:
    directory.mkdir(parents=True)
    records.write_json(directory / "config.json", configs.quickstart().to_dict())
    records.write_result(directory / "result.json", RESULT)
    return directory


def test_local_expands_home_and_keeps_other_paths(home):
    assert paths.local("~/runs/x") == home / "runs/x" and paths.local("~") == home
    assert paths.local("~root/x").is_absolute()
    for text in ("runs/x", "/runs/x", "./~", "a~b", "a:b", "runs/gs:/b", "C"):
        assert str(paths.local(text)) == os.path.normpath(text) or text == "./~"


ADDRESSES = ("gs://b/r", "gs:/b/r", "s3://b/r", "hf://u/d", "abfs://c@a/r", "https://x/y", "file:///r", "host:/export")


@pytest.mark.parametrize("text", [*ADDRESSES, "~nobody-of-this-name/x", "a\0b"])
def test_a_remote_or_invalid_path_is_an_error_with_a_fix(text):
    with pytest.raises(UserError, match="--workdir=") as raised:
        paths.local(text, "--workdir")
    assert "\n" not in str(raised.value)
    if text in ADDRESSES:
        assert "Mount the bucket" in str(raised.value) and repr(text) in str(raised.value)


WITH_PATHS = [  # command, words with a path in the place of {}
    ("train", ["--workdir={}"]),
    ("train", ["--config={}"]),
    ("train", ["--config={}.py:16"]),
    ("train", ["--config.data.cache_dir={}"]),
    ("train", ["--config.data.source=tfds:c4", "--config.data.tfds_data_dir={}"]),
    ("train", ["--config.data.source=text:{}"]),
    ("train", ["--config.data.source=tokens:{}", "--config.data.tokens_vocab_size=256"]),
    ("train", ["--config.data.tokenizer=file:{}"]),
    ("sweep", ["--workdir={}"]),
    ("sweep", ["--config={}"]),
    ("prepare", ["--config={}"]),
    ("benchmark", ["--config.data.cache_dir={}"]),
    ("memory", ["--config={}"]),
    ("sample", ["--run={}"]),
    ("report", ["{}"]),
    ("report", ["--csv={}"]),
    ("report", ["some", "--out={}"]),
]


@pytest.mark.parametrize(("name", "words"), WITH_PATHS)
def test_every_command_rejects_an_address_before_it_starts(home, command, name, words):
    for address in ("gs://b/r", "s3:/b/r"):
        code, out, err = command(name, *[word.format(address) for word in words])
        assert (code, out) == (2, "") and "Mount the bucket" in err and err.count("\n") == 1, err
    assert not os.listdir() and not os.listdir(home)


def test_python_functions_reject_an_address(home):
    config = configs.quickstart()
    for call in (
        lambda: training_run.train(config, "gs://b/r"),
        lambda: grid_command.sweep(config, axis("train.seed", [1]), "gs://b/r"),
        lambda: records.read_curve("gs://b/r"),
    ):
        with pytest.raises(UserError, match="Mount the bucket"):
            call()
    assert not os.listdir()


def test_every_flag_expands_home(home, command):
    run = finished_run(home / "run")
    code, out, err = command("train", "--workdir=~/run")
    assert code == 0 and "this run is finished" in out and str(run) in out, err
    assert f"{home}/none is not a run directory" in command("sample", "--run=~/none")[2]
    assert f"{home}/none is not a sweep directory" in command("sweep", "--workdir=~/none", "--status")[2]
    assert f"there is no config file '{home}/none.py'" in command("train", "--config=~/none.py:1")[2]
    (home / "a.csv").write_text("batch_size,loss_nats\n1,3.0\n2,2.9\n")
    code, _, err = command("report", "--csv=~/a.csv", "--out=~/out")
    assert code == 0 and (home / "out/index.html").exists(), err
    assert f"there is no directory {home}/none" in command("report", "~/none")[2]
    assert not os.listdir()


def test_every_path_in_a_config_expands_home(home, monkeypatch):
    (home / "a.txt").write_text("text")
    (home / "ids.bin").write_bytes(bytes(100))
    assert source_text.matched_files("text:~/*.txt", Skipped()) == [home / "a.txt"]
    spec = data_spec(Path("~/cache"), source="tokens:~/ids.bin", tokens_vocab_size=256)
    assert str(home / "ids.bin") in str(sources.identity(spec)) and prepare.dataset_dir(spec).parent == home / "cache"
    asked = []
    monkeypatch.setattr(source_tfds, "_prepared_builder", lambda *words: asked.extend(words) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(sources.documents(data_spec(home, source="tfds:c4", tfds_data_dir="~/tfds")))
    assert asked[-1] == str(home / "tfds")


def test_a_name_that_is_too_long_is_a_one_line_error(home, command):
    for name, words in [
        ("train", [f"--workdir={LONG}"]),
        ("train", [f"--config={LONG}.py"]),
        ("sweep", [f"--workdir={LONG}", "--status"]),
        ("sample", [f"--run={LONG}"]),
        ("report", [LONG]),
        ("report", [f"--csv={LONG}"]),
    ]:
        code, out, err = command(name, *words)
        assert (code, out) == (2, "") and "File name too long" in err and err.count("\n") == 1, (name, words, err)


@pytest.mark.parametrize("probe", [paths.exists, paths.is_file, paths.is_dir, paths.status, paths.entries])
def test_a_directory_without_search_permission_is_a_one_line_error(tmp_path, monkeypatch, probe):
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(UserError, match=r"cannot access .*: Permission denied; check the path and its permissions"):
        probe(tmp_path / "x")


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may search every directory")
def test_a_run_in_a_directory_without_search_permission_is_a_one_line_error(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    code = "from smallbatch import train; from smallbatch.config import cli; cli.run(train.main, train.FLAGS)"
    drop = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    root = str(Path(__file__).parents[1])
    if drop and subprocess.run([*drop, "ls", root, sys.prefix], capture_output=True).returncode:
        pytest.skip("nobody may not read the code here")
    done = subprocess.run(
        [*drop, sys.executable, "-B", "-c", code, f"--workdir={closed}/run"],
        capture_output=True, text=True, cwd="/", env=os.environ | {"PYTHONPATH": root},
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Permission denied" in done.stderr, done.stderr


def test_files_directories_and_missing_paths_are_distinguished(tmp_path):
    (tmp_path / "file").touch()
    assert (
        paths.is_file(tmp_path / "file") and paths.is_dir(tmp_path) and paths.entries(tmp_path) == [tmp_path / "file"]
    )
    for absent in (tmp_path / "none", tmp_path / "file" / "below"):
        assert not (paths.exists(absent) or paths.is_file(absent) or paths.is_dir(absent) or paths.entries(absent))
    with pytest.raises(UserError, match=r"cannot write in .*: .*file is not a directory; choose another"):
        paths.check_writable(tmp_path / "file" / "run", "choose another --workdir")
    paths.check_writable(tmp_path / "a" / "b", "choose another --workdir")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
