"""A run that is killed, stopped, damaged or started twice has the numbers of an uninterrupted run, or a clear error."""

import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import runs

from smallbatch.errors import UserError
from smallbatch.runs import records
from smallbatch.runs import run_dir as workdir
from smallbatch.training import run, trainer
from smallbatch.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

home, reference = runs.home, runs.reference


def assert_same_run(home: Path, path: Path, reference: Path) -> None:
    """Assert that all numbers of two runs of LONG are bitwise equal."""
    assert runs.numbers(path) == runs.numbers(reference)
    assert runs.result_of(path) == runs.result_of(reference)
    ours, theirs = (runs.final_state(home, runs.LONG, p) for p in (path, reference))
    assert ours.keys() == theirs.keys() and len(ours) > 12
    for name, array in ours.items():
        assert np.array_equal(array, theirs[name]), name


def stopped_at(poll: int, plan, dataset, directory: workdir.RunDir) -> trainer.Outcome:
    """Train until the stop is polled for the nth time."""
    runs_ = [trainer.Run(plan, directory)]
    one = trainer.Trainer(runs_, dataset, directory.checkpoints, 3600.0, runs.StopAtPoll(poll))
    one.restore()
    return one.run()[0]


def test_the_reference_run_has_records_and_checkpoints(reference):
    train = [r["loss_nats"] for r in runs.numbers(reference, "train")]
    assert [r["step"] for r in runs.numbers(reference, "train")] == list(range(5, 151, 5))
    assert [r["step"] for r in runs.numbers(reference, "validation")] == [50, 100, 150]
    assert len(set(train)) == 30 and train[-1] < train[0] - 1
    assert runs.result_of(reference)["sample"].startswith("def ")


def test_a_run_killed_repeatedly_equals_an_uninterrupted_one(home, reference, tmp_path):
    path, cache = tmp_path / "run", tmp_path / "cache"
    cache.mkdir()
    (cache / "xla").symlink_to(home / "cache" / "xla")  # compiled programs, but no dataset
    changes = runs.LONG | {"data.cache_dir": str(cache)}
    log = tmp_path / "stderr"
    at = lambda kind, step: (
        lambda: any(r["step"] >= step for r in (runs.numbers(path, kind) if (path / "metrics.jsonl").exists() else []))
    )
    saving = lambda: any(not p.name.isdecimal() for p in (path / "checkpoints").glob("*"))
    moments = {
        "preparing the data": lambda: len(list(cache.iterdir())) > 1,
        "compiling": lambda: "compiling" in log.read_text(),
        "training": at("train", 10),
        "saving": lambda: at("train", 45)() and saving(),
        "after a validation": at("validation", 100),
        "at the last record": at("validation", 150),
        "after the last checkpoint": (path / "checkpoints" / "150").exists,
    }
    reached = []
    for name, happened in moments.items():
        with log.open("w") as stderr:
            process = runs.start(home, changes, path, stdout=stderr, stderr=stderr)
            if runs.wait_until(process, happened):
                os.kill(process.pid, signal.SIGKILL)
            if process.wait() == -signal.SIGKILL:
                reached.append(name)
                assert not (path / "result.json").exists(), name
        assert "Traceback" not in log.read_text()
        if (path / "result.json").exists():
            break
    assert len(reached) >= 6, reached
    last = runs.command(home, changes, path)
    assert last.returncode == 0, last.stderr
    assert_same_run(home, path, reference)


def test_sigterm_and_ctrl_c_save_and_the_same_command_resumes(home, reference, tmp_path):
    path = tmp_path / "run"
    for number, count in ((signal.SIGTERM, 4), (signal.SIGINT, 14)):
        process = runs.start(home, runs.LONG, path)
        assert runs.wait_until(process, lambda count=count: runs.record_count(path) >= count)
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert len([line for line in out.splitlines() if "rerun the same command" in line]) == 1
        result = records.read_result(path / "result.json")
        assert result.status == "stopped" and result.validation_loss_nats is None
        assert 0 < result.optimizer_steps < 150
        assert runs.steps_saved(path)[-1] == result.optimizer_steps  # no update is lost
        assert runs.numbers(path, "train")[-1]["step"] == result.optimizer_steps
    last = runs.command(home, runs.LONG, path)
    assert last.returncode == 0, last.stderr
    assert f"resuming after update {result.optimizer_steps}" in last.stderr
    assert_same_run(home, path, reference)


def test_ctrl_c_in_python_saves_and_then_raises(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = runs.tiny_config(home, {"train.checkpoint_every_secs": 0.0})
    save = Checkpoints.save

    def interrupted(*arguments):
        monkeypatch.setattr(Checkpoints, "save", save)
        os.kill(os.getpid(), signal.SIGINT)
        save(*arguments)

    monkeypatch.setattr(Checkpoints, "save", interrupted)
    with pytest.raises(
        KeyboardInterrupt, match=r"stopped and saved after update \d+; call it again to resume"
    ) as raised:
        run.train(config)
    assert isinstance(raised.value, run.Interrupted) and raised.value.result.status == "stopped"
    result = run.train(config)
    assert result.status == "done" and result.directory == run.workdirs.default_path(config, None)
    assert result.curve()["step"] == [*range(1, 21)] and result.curve("validation")["tokens"] == [1280]


def test_a_stop_at_any_moment_saves_all_updates(home, tmp_path):
    config = runs.tiny_config(home, {"train.steps_per_dispatch": 2})
    plan = run.make_plan(config)
    dataset = run.prepare.prepare(plan.data)
    stopped_after = set()
    for number in range(1, 8):
        directory = workdir.RunDir(tmp_path / str(number))
        directory.path.mkdir()
        outcome = stopped_at(number, plan, dataset, directory)
        assert outcome.status == "stopped"
        assert runs.steps_saved(directory.path) == [outcome.step]
        assert runs.numbers(directory.path)[-1]["step"] == outcome.step
        stopped_after.add(outcome.step)
    assert len(stopped_after) >= 5


# The batch size grows twice, with every optional part of the state.
GROWING = {
    "model.param_dtype": "bfloat16",
    "optimizer.rounding": "stochastic",
    "optimizer.clip_norm": 1.0,
    "optimizer.weight_average_tokens": 300.0,
    "train.batch_size": 1,
    "train.batch_size_schedule": "320:2,768:4",  # after updates 10 and 17, of 21
    "train.batch_size_lr_rule": "sqrt",
    "train.diagnostics": True,
    "train.microbatch_size": 1,
    "train.validate_every_tokens": 320,
}


@pytest.fixture(scope="module")
def grown(home, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("grown")
    runs.trained(home, path, GROWING)
    return path


def test_a_batch_size_schedule_counts_tokens(home, grown):
    train = runs.numbers(grown, "train")
    assert [(r["step"], r["tokens"]) for r in train] == [
        *((2 * i, 64 * i) for i in range(1, 6)),
        *((10 + i, 320 + 64 * i) for i in range(1, 8)),
        *((17 + i, 768 + 128 * i) for i in range(1, 5)),
    ]
    rates = {r["step"]: r["learning_rate"] for r in train}
    assert rates[11] > 1.2 * rates[10]  # sqrt(2), less the decay of the schedule
    assert [r["tokens"] for r in runs.numbers(grown, "validation")] == [320, 640, 1024, 1280]
    assert all(0 < r["clipped_frac"] <= 1 and r["grad_norm"] > 1 for r in train[:3])
    assert all(r["noise_scale_tokens"] is None or r["grad_noise_sq"] > 0 for r in train)
    result = runs.result_of(grown)
    assert (result["tokens"], result["optimizer_steps"]) == (1280, 21)
    assert result["average_validation_loss_nats"] not in (None, result["validation_loss_nats"])


@pytest.mark.parametrize("step", [7, 10, 17])
def test_a_run_with_a_batch_size_schedule_is_resumed_exactly(home, grown, tmp_path, step):
    config = runs.tiny_config(home, GROWING | {"train.steps_per_dispatch": 1})
    plan = run.make_plan(config)
    directory = workdir.RunDir(tmp_path)
    assert stopped_at(step, plan, run.prepare.prepare(plan.data), directory).step == step
    run.train(config, tmp_path)
    assert runs.numbers(tmp_path) == runs.numbers(grown)
    ours, theirs = (runs.final_state(home, GROWING, path) for path in (tmp_path, grown))
    for name, array in ours.items():
        assert np.array_equal(array, theirs[name]), name


def test_a_missing_result_is_computed_from_the_last_checkpoint(home, reference, tmp_path):
    path = tmp_path / "run"
    runs.unfinished(reference, path)
    run.train(runs.tiny_config(home, runs.LONG), path)
    assert_same_run(home, path, reference)


def test_a_stop_at_a_token_count_is_validated_even_if_its_result_was_lost(home, tmp_path):
    config = runs.tiny_config(home, {})
    first = run.train(config, tmp_path, until_tokens=640)
    assert (first.status, first.tokens) == ("stopped", 640) and first.validation_loss_nats is not None
    (tmp_path / "result.json").unlink()
    again = run.train(config, tmp_path, until_tokens=640)
    assert (again.tokens, again.validation_loss_nats) == (640, first.validation_loss_nats)
    assert run.train(config, tmp_path).status == "done"


def test_a_damaged_checkpoint_is_skipped_and_changes_no_number(home, reference, tmp_path, capsys):
    path = tmp_path / "run"
    runs.unfinished(reference, path)
    before, newest = runs.steps_saved(path)
    assert (before, newest) == (145, 150)
    largest = max((path / "checkpoints" / "150").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    largest.write_bytes(content)
    run.train(runs.tiny_config(home, runs.LONG), path)
    said = capsys.readouterr().err
    assert "is damaged" in said and f"restoring {path / 'checkpoints' / '145'} instead" in said
    assert_same_run(home, path, reference)


def test_metrics_that_lack_records_are_an_error(home, reference, tmp_path):
    path = tmp_path / "run"
    runs.unfinished(reference, path)
    lines = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (path / "metrics.jsonl").write_bytes(b"".join(lines[:3]))
    with pytest.raises(UserError, match=r"has 3 records, but the checkpoint was saved after 33"):
        run.train(runs.tiny_config(home, runs.LONG), path)


def test_another_dataset_is_an_error_and_overwrites_nothing(home, tmp_path):
    other = tmp_path / "home"
    other.mkdir()
    texts = runs.sentences(300)
    runs.write_jsonl(other / "corpus.jsonl", texts)
    (other / "cache").mkdir()
    (other / "cache" / "xla").symlink_to(home / "cache" / "xla")
    path = tmp_path / "run"
    changes = {"data.tokenizer": "bpe:300"}
    runs.trained(other, path, changes)
    (path / "result.json").unlink()
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    runs.write_jsonl(other / "corpus.jsonl", [text[::-1] for text in texts])
    with pytest.raises(UserError, match="belongs to another dataset"):
        run.train(runs.tiny_config(other, changes), path)
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_directory_of_another_config_is_a_one_line_error_with_the_keys(home, reference):
    before = (reference / "result.json").stat().st_mtime_ns
    done = runs.command(home, runs.LONG | {"train.seed": 7, "train.sample_tokens": 9}, reference)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "train.seed: 0 | 7" in done.stderr and "sample_tokens" not in done.stderr
    assert (reference / "result.json").stat().st_mtime_ns == before


def test_a_finished_run_is_printed_without_starting_jax(home, reference):
    before = {p: p.stat().st_mtime_ns for p in reference.rglob("*")}
    busy_secs = lambda: resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    began = busy_secs()
    done = runs.command(home, runs.LONG, reference, prefix=("env", "PYTHONPROFILEIMPORTTIME=1"))
    secs = busy_secs() - began
    assert done.returncode == 0
    assert "this run is finished" in done.stdout and "nats/token" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "smallbatch.runs.records" in imported and not {"jax", "grain", "tensorflow_datasets"} & imported
    assert secs < 3
    assert {p: p.stat().st_mtime_ns for p in reference.rglob("*")} == before


def test_a_second_process_in_one_directory_is_an_error(home, reference, tmp_path):
    path = tmp_path / "run"
    runs.unfinished(reference, path)
    config = runs.tiny_config(home, runs.LONG)
    with workdir.locked(workdir.RunDir(path), config):
        done = runs.command(home, runs.LONG, path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"another process is training in {path}" in done.stderr
        assert not (path / "result.json").exists()
    run.train(config, path)  # the lock ended with its process
    assert (path / "result.json").exists()


@pytest.mark.parametrize("kilobytes", [4, 32])
def test_a_full_disk_is_one_line_and_keeps_the_previous_checkpoint(home, reference, tmp_path, kilobytes):
    # At 4 KiB, metrics.jsonl cannot grow. At 32 KiB it can, but a checkpoint cannot be written.
    path, cache = tmp_path / "run", tmp_path / "cache"
    runs.unfinished(reference, path, keep=1)
    shutil.copytree(
        home / "cache", cache, ignore=shutil.ignore_patterns("*.partial")
    )  # other tests create and delete them
    changes = runs.LONG | {"data.cache_dir": str(cache)}
    limited = ("bash", "-c", f'ulimit -f {kilobytes}; export PYTHONDONTWRITEBYTECODE=1; exec "$@"', "-")
    done = runs.command(home, changes, path, prefix=limited)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    what = "metrics.jsonl" if kilobytes == 4 else "a checkpoint"
    assert line.startswith("error: cannot write") and what in line and "free some space" in line
    assert "Traceback" not in done.stderr and not (path / "result.json").exists()
    assert runs.steps_saved(path) == [145]
    run.train(runs.tiny_config(home, runs.LONG), path)
    assert_same_run(home, path, reference)
