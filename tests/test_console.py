"""A closed pipe, a full disk or a limited encoding of standard output changes no exit code."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smallbatch.config.console import tolerant_output

ROOT = Path(__file__).resolve().parents[1]
COMMAND = '''"""Print what a run ends with: a command for a test."""
import sys
from smallbatch.config import cli

def main(flags):
    for line in range(flags.lines):
        print("naïve 学习", line)
    if flags.fail:
        raise cli.UserError("naïve")

FLAGS = (
    cli.Key("--lines", 3, int, "how many", cli.keys.COUNT),
    cli.Key("--fail", False, bool, "fail at the end"),
)

if __name__ == "__main__":
    cli.run(main, FLAGS, config=False)
'''


@pytest.fixture
def start(tmp_path):
    """Start the command above, or a module of smallbatch, with a standard output and variables of its own."""
    (tmp_path / "say.py").write_text(COMMAND)

    def start(*words, module=None, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **variables):
        argv = [sys.executable, *(["-m", module] if module else [tmp_path / "say.py"]), *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
        return subprocess.Popen(argv, stdout=stdout, stderr=stderr, env=environment)

    return start


@pytest.mark.parametrize("variables", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [["--help"], ["--lines=3"], ["--lines=30000"]])
def test_a_closed_pipe_is_not_an_error(start, words, variables):
    process = start(*words, **variables)
    process.stdout.close()  # before a line is read, because `| head -3` would be a race
    assert (process.wait(timeout=60), process.stderr.read()) == (0, b"")
    process.stderr.close()


def test_help_of_train_into_a_closed_pipe_prints_no_traceback(start):
    process = start("--help", module="smallbatch.train")
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (0, b"")
    process.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("words", "code"), [(["--lines=3"], 0), (["--lines=30000"], 0), (["--help"], 0), (["--fail"], 2)]
)
def test_a_full_standard_output_is_reported_and_changes_no_exit_code(start, words, code):
    with open("/dev/full", "w") as full:
        process = start(*words, stdout=full)
        _, err = process.communicate(timeout=60)
    lines = err.decode().splitlines()
    assert process.returncode == code
    assert sum("standard output failed (No space left on device)" in line for line in lines) == 1
    assert len(lines) == (2 if code else 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_standard_error_changes_no_exit_code(start):
    with open("/dev/full", "w") as full:
        assert start("--fail", stdout=full, stderr=full).wait(timeout=60) == 2
        assert start("--lines=3", stdout=full, stderr=full).wait(timeout=60) == 0


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
    ids=["ascii", "C", "latin-1"],
)
def test_unencodable_characters_are_replaced(start, variables):
    out, err = (process := start("--lines=1", **variables)).communicate(timeout=60)
    assert (process.returncode, err) == (0, b"") and out.endswith(b"?? 0\n")
    _, err = (process := start("--fail", **variables)).communicate(timeout=60)
    assert process.returncode == 2 and err.startswith(b"error: na")


def test_streams_are_restored(monkeypatch):
    before = sys.stdout, sys.stderr
    with tolerant_output():
        print("seen")
    assert (sys.stdout, sys.stderr) == before
    monkeypatch.setattr(sys, "stdout", None)
    with tolerant_output():
        print("nobody reads it")
    assert sys.stdout is None


def test_a_stream_that_fails_is_reported_once(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    errors = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(sys, "stderr", errors)
    with tolerant_output():
        print("one")
        print("two", flush=True)
    assert errors.getvalue().count("\n") == 1 and "No space left on device" in errors.getvalue()
