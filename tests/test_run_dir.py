"""The run directory: its name, its owner, its lock, and when it is finished."""

import dataclasses
import os
import signal
import subprocess
import sys

import pytest
from test_records import RESULT

from smallbatch import config as configs
from smallbatch.errors import UserError
from smallbatch.files import json_files
from smallbatch.runs import records
from smallbatch.runs import run_dir as workdir


def config(**changes):
    c = configs.quickstart()
    c.train.update(changes)
    return c


def test_default_path_has_the_config_name_and_fingerprint():
    path = workdir.default_path(config(), "configs/lm30m.py:16")
    assert path.parent.name == "runs" and path.name == f"lm30m-{configs.fingerprint(config())[:12]}"
    assert workdir.default_path(config(), None).name.startswith("quickstart-")
    assert workdir.default_path(config(seed=1), None) != workdir.default_path(config(), None)
    assert workdir.default_path(config(checkpoint_every_secs=1.0), None) == workdir.default_path(config(), None)


def test_started_run_belongs_to_its_config(tmp_path):
    directory = workdir.RunDir(tmp_path / "a" / "b")
    with workdir.locked(directory, config(seed=3)):
        assert not directory.config.exists()  # checks run before it is written
        workdir.write_config(directory, config(seed=3))
        assert json_files.read(directory.config) == configs.resolved(config(seed=3))
        directory.metrics.write_text("{}\n")
    with workdir.locked(directory, config(seed=3, sample_tokens=1)):  # it affects no number
        pass
    with (
        pytest.raises(UserError, match=r"train\.budget_tokens: 1048576 \| 4096; train\.seed: 3 \| 4"),
        workdir.locked(directory, config(seed=4, budget_tokens=4096)),
    ):
        pass


@pytest.mark.parametrize("left", ["metrics.jsonl", "result.json", "checkpoints/12/x"])
def test_config_can_change_until_a_run_has_started(tmp_path, left):
    directory = workdir.RunDir(tmp_path)
    workdir.write_config(directory, config(seed=3))
    directory.plan.write_text("{}")
    directory.tokenizer.mkdir()
    directory.checkpoints.mkdir()
    directory.metrics.touch()
    workdir.check_owner(directory, config(seed=4))
    with workdir.locked(directory, config(seed=4)):
        workdir.write_config(directory, config(seed=4))
    assert json_files.read(directory.config) == configs.resolved(config(seed=4))
    assert not directory.tokenizer.exists() and not directory.plan.exists()  # they belonged to the other run
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_text("{}\n")
    with pytest.raises(UserError, match=r"train\.seed: 4 \| 3: saved \| given\); resume it with --workdir alone"):
        workdir.check_owner(directory, config(seed=3))
    workdir.write_config(directory, config(seed=3))
    assert json_files.read(directory.config) == configs.resolved(config(seed=4))


def test_directory_of_a_sweep_is_an_error(tmp_path):
    (tmp_path / "grid.json").write_text("{}")
    with pytest.raises(UserError, match="holds a sweep, not a run; resume it with"):
        workdir.check_owner(workdir.RunDir(tmp_path), config())


def test_lock_is_exclusive_and_released_by_a_kill(tmp_path):
    program = (
        "import sys, time; from smallbatch import config; from smallbatch.runs import run_dir as workdir; "
        "from pathlib import Path\n"
        "with workdir.locked(workdir.RunDir(Path(sys.argv[1])), config.quickstart()): print('held', flush=True); "
        "time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    directory = workdir.RunDir(tmp_path)
    with pytest.raises(UserError, match="another process is training"), workdir.locked(directory, config()):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    with workdir.locked(directory, config()):
        pass


@pytest.mark.parametrize("status, is_finished", [("done", True), ("diverged", True), ("stopped", False)])
def test_stopped_run_is_not_finished(tmp_path, status, is_finished):
    directory = workdir.RunDir(tmp_path)
    assert workdir.finished(directory) is None
    result = dataclasses.replace(RESULT, status=status)
    records.write_result(directory.result, result)
    assert workdir.finished(directory) == (result if is_finished else None)


def test_result_without_config_json_is_checked_by_its_fingerprint(tmp_path):
    directory = workdir.RunDir(tmp_path)
    fingerprint = configs.fingerprint(configs.base())
    records.write_result(directory.result, dataclasses.replace(RESULT, fingerprint=fingerprint))
    workdir.check_owner(directory, configs.base())
    other = configs.base()
    other.train.seed = 77
    with pytest.raises(UserError, match=r"another config .*config\.json is missing"):
        workdir.check_owner(directory, other)


def test_records_without_config_json_are_an_error(tmp_path):
    directory = workdir.RunDir(tmp_path)
    directory.metrics.write_text('{"mine": 1}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl without the config\.json"):
        workdir.check_owner(directory, configs.base())
    (directory.checkpoints / "12").mkdir(parents=True)  # a checkpoint names its config, which is checked on restore
    workdir.check_owner(directory, configs.base())
