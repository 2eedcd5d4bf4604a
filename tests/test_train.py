"""The train command: results, divergence, dry runs, trackers, and one-line errors for every invalid input."""

import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import runs

from smallbatch.analysis import hardware
from smallbatch.analysis.read import sweeps
from smallbatch.errors import UserError
from smallbatch.runs import records
from smallbatch.training import run
from smallbatch.training.checkpoint import Checkpoints
from smallbatch.training.program import TrainProgram

home, reference = runs.home, runs.reference
REQUIRED = {"status", "validation_loss_nats", "bits_per_byte", "tokens", "flops", "tokens_per_sec"}
REQUIRED |= {"optimizer_steps", "fingerprint"}


def test_config_plan_metrics_and_result_of_a_run_agree(home, reference):
    result = json.loads((reference / "result.json").read_text())
    plan = json.loads((reference / "plan.json").read_text())
    config = json.loads((reference / "config.json").read_text())
    assert result.keys() >= REQUIRED and all(result[key] is not None for key in REQUIRED)
    assert result["status"] == "done" and result["diverged_at_step"] is None
    assert result["fingerprint"] == plan["fingerprint"] == runs.configs.fingerprint(runs.tiny_config(home, runs.LONG))
    assert result["tokens"] == config["train"]["budget_tokens"] == 9600
    assert result["optimizer_steps"] == plan["optimizer_steps"] == 150
    assert result["flops"] == plan["flops"] and result["params"] == plan["params"] == 28_672
    last = runs.numbers(reference)[-1]
    assert last["kind"] == "validation" and last["loss_nats"] == result["validation_loss_nats"]
    assert result["train_loss_nats"] == runs.numbers(reference, "train")[-1]["loss_nats"]
    assert result["perplexity"] == pytest.approx(math.exp(result["validation_loss_nats"]))
    assert 0 < result["validation_loss_se_nats"] < 0.2 * result["validation_loss_nats"]
    assert result["secs"] > 0 and result["tokens_per_sec"] > 0 and result["peak_memory_bytes"] > 2**20
    assert (reference / "tokenizer").is_dir() and result["started"] <= result["finished"]


def test_tokens_per_sec_excludes_the_wait_for_the_last_checkpoint(home, tmp_path, monkeypatch):
    wait = Checkpoints.wait

    def slow(checkpoints):
        pending = checkpoints._pending is not None
        wait(checkpoints)
        time.sleep(3.0 * pending)

    monkeypatch.setattr(Checkpoints, "wait", slow)
    result, _ = runs.trained(home, tmp_path, {})
    assert result.secs > 3.0 and result.tokens / result.tokens_per_sec < 2.0


def test_memory_is_that_of_the_program_of_the_run(home, tmp_path):
    found = {}
    averages = {"adam": {}, "sgd": {"optimizer.b1": None, "optimizer.t2_tokens": None}}
    for name in averages:
        changes = {"optimizer.name": name, "optimizer.peak_lr": 0.01} | averages[name]
        result, _ = runs.trained(home, tmp_path / name, changes)
        planned = run.dry_run(runs.tiny_config(home, changes)).memory
        assert result.program_memory_bytes == planned.total_bytes
        found[name] = result
    assert found["sgd"].program_memory_bytes <= found["adam"].program_memory_bytes - 2 * 4 * 28_672
    assert found["sgd"].peak_memory_bytes is None  # it includes that of the previous run
    rows = hardware.hardware(sweeps.read([tmp_path]))
    memory = {row["arm"]: row["memory_bytes"] for row in rows}
    assert {min(memory, key=memory.get)} == {arm for arm in memory if "sgd" in arm}


def test_train_records_count_tokens_flops_and_follow_the_schedule(home, reference):
    found = runs.numbers(reference, "train")
    per_token = 6 * (12 * 32**2 + 256 * 32) + 12 * 32 * 32
    warmup = 0.05 * 150
    for record in found:
        assert record["tokens"] == record["step"] * 64 and record["flops"] == record["tokens"] * per_token
        update = record["step"] - 0.5  # the midpoint of the last update in the record
        x = (update - warmup) / (150 - warmup)
        expected = 0.003 * (update / warmup if update < warmup else 0.5 * (1 + math.cos(math.pi * x)))
        assert record["learning_rate"] == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_a_run_at_any_batch_size_rounds_its_budget_up_to_whole_updates(home, tmp_path):
    changes = {"train.batch_size": 3, "optimizer.warmup_frac": None, "optimizer.warmup_tokens": 16}
    result, _ = runs.trained(home, directory := tmp_path / "run", changes)
    assert result.status == "done" and result.tokens == 14 * 3 * 32 == 1344  # the budget of 1,280, rounded up
    assert result.flops == json.loads((directory / "plan.json").read_text())["flops"]
    first = runs.numbers(directory, "train")[0]  # its warm-up is shorter than an update
    assert first["step"] == 1 and first["learning_rate"] == pytest.approx(0.003, rel=0.02)


def test_first_loss_is_that_of_an_untrained_model_and_records_are_means(home, tmp_path):
    fine = {"train.steps_per_dispatch": 3}
    _, every = runs.trained(home, tmp_path / "every", fine)
    _, tens = runs.trained(home, tmp_path / "tens", fine | {"train.log_every_tokens": 640})
    losses = runs.train_losses(every)
    assert losses[0] == pytest.approx(math.log(256) + 0.5, abs=0.3)
    np.testing.assert_allclose(runs.train_losses(tens), losses.reshape(2, 10).mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("not finite", {"optimizer.peak_lr": 1e36}),
        ("far above the start", {"optimizer.peak_lr": 30.0}),
        ("only after the last update", {"optimizer.peak_lr": 1e36, "train.budget_tokens": 64}),
    ],
)
def test_divergence_is_a_result(home, tmp_path, monkeypatch, capsys, name, changes):
    path = tmp_path / "run"
    changes = {"optimizer.warmup_frac": 0.0, "train.checkpoint_every_secs": 0.0} | changes
    done = runs.in_process(monkeypatch, capsys, runs.words(home, changes, path))
    assert done.returncode == 0 and "diverged at step" in done.stdout
    result = records.read_result(path / "result.json")
    assert result.status == "diverged" and result.validation_loss_nats is None and result.sample is None
    last = runs.numbers(path, "train")[-1]
    assert result.diverged_at_step == result.optimizer_steps == last["step"]
    assert result.tokens == last["tokens"] and result.flops == last["flops"]
    if name == "not finite":
        assert last["loss_nats"] is None
    if name == "far above the start":
        assert last["loss_nats"] > math.log(256) + 3.5
    json.loads((path / "result.json").read_text(), parse_constant=pytest.fail)
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    again = runs.in_process(monkeypatch, capsys, runs.words(home, changes, path))
    assert again.returncode == 0 and "this run is finished" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


def test_a_loss_whose_exp_overflows_is_a_result(home, tmp_path):
    # SGD at this rate reaches losses of thousands of nats, whose exp overflows float64.
    changes = {"optimizer.name": "sgd", "optimizer.b1": None, "optimizer.t2_tokens": None, "optimizer.peak_lr": 1e4}
    changes |= {"train.diverged_above_start_nats": 1e30, "optimizer.warmup_frac": 0.0, "optimizer.schedule": "constant"}
    result, _ = runs.trained(home, tmp_path / "run", changes)
    assert result.status == "done" and result.validation_loss_nats is not None and result.validation_loss_nats > 710
    assert records.read_result(tmp_path / "run" / "result.json").perplexity is None


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, home):
    cache = tmp_path / "cache"
    changes = {"data.source": "pystdlib", "data.cache_dir": str(cache)}
    done = runs.command(home, changes, tmp_path / "run", "--dry_run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) in ([], ["cache"])
    assert not cache.exists() or [p.name for p in cache.iterdir()] == ["xla"]  # compiled programs, no dataset
    said = " ".join(done.stdout.split())
    for words in (
        *("1,280 tokens = 20 steps", "warm-up of 64 tokens = 1.0 steps = 5.0% of the run", "28,672 in total"),
        *("half-life 3,000 tokens = 46.9 steps = 234.38% of the run", "half-life 421 tokens = 6.6 steps", "FLOPs"),
        "unknown until the dataset is prepared",
    ):
        assert words in said, words
    memory = done.stdout[done.stdout.index("memory") :]
    for words in ("parameters 112 KiB", "optimizer 224 KiB", "gradients, activations", "total"):
        assert words in " ".join(memory.split()), words


def test_tensorboard_shows_the_records(home, tmp_path):
    from tensorboardX.proto import event_pb2

    path = tmp_path / "run"
    runs.trained(home, path, {"records.tensorboard": True})
    shown = {}
    for file in (path / "tensorboard").iterdir():
        content = file.read_bytes()
        while content:  # length (8), its checksum (4), event, its checksum (4)
            size = int.from_bytes(content[:8], "little")
            event = event_pb2.Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            shown |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    found = runs.numbers(path)
    assert len(found) == 21
    for record in found:
        value = shown[f"{record['kind']}/loss_nats", record["tokens"]]
        assert value == pytest.approx(record["loss_nats"], rel=1e-6)


def bad_inputs(place: Path) -> dict[str, tuple[dict, str]]:
    """Return {name: (changes, words of the error)}; the files are written in `place`."""
    (place / "empty").mkdir()
    (place / "empty" / "a.txt").write_text("")
    (place / "latin").mkdir()
    (place / "latin" / "a.txt").write_bytes(b"caf\xe9")
    runs.write_jsonl(place / "short.jsonl", [str(n) for n in range(30)])
    np.arange(3000, dtype="<u2").tofile(place / "ids.bin")
    tokens = {"data.source": f"tokens:{place}/ids.bin", "data.tokens_vocab_size": 100}
    return {
        "missing corpus": ({"data.source": f"text:{place}/none/*.txt"}, "no file matches"),
        "empty corpus": ({"data.source": f"text:{place}/empty/*.txt"}, "contains no text"),
        "not UTF-8": ({"data.source": f"text:{place}/latin/*.txt"}, "is not UTF-8 at byte 3"),
        "smaller than a sequence": (
            {"data.source": f"text:{place}/short.jsonl", "model.context_tokens": 640},
            "but one sequence needs",
        ),
        "outside the vocabulary": (tokens, "vocab"),
        "batch over devices": (
            {"mesh.data": 2, "train.batch_size": 3, "train.budget_tokens": 96 * 4},
            "3 sequences is not divisible by",
        ),
        "more devices than there are": ({"mesh.data": 16, "train.batch_size": 16, "train.budget_tokens": 512}, "needs"),
        "long prompt": ({"train.sample_prompt": "x" * 33, "train.sample_tokens": 1}, "sample_prompt has 33 tokens"),
        "another machine's attention": ({"model.attention": "splash"}, "needs a TPU"),
        "no such key value": ({"model.remat": "some"}, "must be one of none, dots, full"),
    }


def test_every_invalid_input_is_a_one_line_error_and_starts_no_run(home, tmp_path, monkeypatch, capsys):
    cases = bad_inputs(tmp_path)
    for number, (name, (changes, words)) in enumerate(cases.items()):
        path = tmp_path / f"run{number}"
        done = runs.in_process(monkeypatch, capsys, runs.words(home, changes, path))
        assert done.returncode == 2 and done.stdout == "", name
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and done.stderr.endswith(lines[0] + "\n") and words in lines[0], (name, done.stderr)
        assert not path.exists() or {p.name for p in path.iterdir()} <= {".lock"}, name


def test_after_a_usage_error_the_directory_accepts_another_config(home, tmp_path, monkeypatch, capsys):
    path = tmp_path / "run"
    mistakes = [
        {"data.source": f"text:{tmp_path}/none/*.txt"},
        {"model.attention": "splash"},
        {"train.sample_prompt": "x" * 33, "train.sample_tokens": 1},
    ]
    for seed, mistake in enumerate(mistakes, 1):
        changes = {"train.seed": seed} | mistake
        assert runs.in_process(monkeypatch, capsys, runs.words(home, changes, path)).returncode == 2
        assert not (path / "config.json").exists()
    assert runs.in_process(monkeypatch, capsys, runs.words(home, {}, path)).returncode == 0
    assert json.loads((path / "config.json").read_text())["train"]["seed"] == 0


def test_a_run_that_does_not_fit_the_memory_writes_no_config(home, tmp_path, monkeypatch):
    def refuse(self, with_updates=False):
        raise UserError("an update does not fit in the memory of a device")

    monkeypatch.setattr(TrainProgram, "check_memory", refuse)
    with pytest.raises(UserError, match="does not fit"):
        runs.trained(home, tmp_path / "run", {})
    assert not (tmp_path / "run" / "config.json").exists()


def test_workdir_alone_resumes_the_run_in_it(home, reference, tmp_path, monkeypatch, capsys):
    path = tmp_path / "run"
    runs.unfinished(reference, path)
    done = runs.in_process(monkeypatch, capsys, [f"--workdir={path}"])
    assert done.returncode == 0 and "resuming after update" in done.stderr, done.stderr
    assert runs.result_of(path) == runs.result_of(reference)
    assert runs.numbers(path) == runs.numbers(reference)


def test_flags_that_contradict_the_run_in_workdir_are_an_error_with_their_keys(home, reference, monkeypatch, capsys):
    before = {p: p.stat().st_mtime_ns for p in reference.rglob("*")}
    words = ["--config.train.batch_size=4", "--config.train.seed=1", "--config.train.sample_tokens=9"]
    done = runs.in_process(monkeypatch, capsys, [f"--workdir={reference}", *words])
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "(train.batch_size: 2 | 4; train.seed: 0 | 1: saved | given)" in done.stderr
    assert "resume it with --workdir alone" in done.stderr
    done = runs.in_process(monkeypatch, capsys, [f"--workdir={reference}", "--config.train.sample_tokens=9"])
    assert done.returncode == 0 and "this run is finished" in done.stdout  # no number depends on it
    assert {p: p.stat().st_mtime_ns for p in reference.rglob("*")} == before


def test_a_dry_run_rejects_the_directory_that_a_run_rejects(home, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        done = runs.in_process(monkeypatch, capsys, [*runs.words(home, {}, path), "--dry_run"])
        assert done.returncode == 2 and f"cannot write in {path}" in done.stderr


def test_an_impossible_run_directory_is_a_one_line_error(home, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        done = runs.in_process(monkeypatch, capsys, runs.words(home, {}, path))
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"cannot write in the run directory {path}" in done.stderr
    assert (tmp_path / "file").read_text() == "in the way"


def test_damaged_files_of_a_run_are_reported_and_kept(home, reference, tmp_path, monkeypatch, capsys):
    for name in ("config.json", "result.json"):
        path = tmp_path / name.partition(".")[0]
        shutil.copytree(reference, path)
        (path / name).write_text('{"half')
        done = runs.in_process(monkeypatch, capsys, runs.words(home, runs.LONG, path))
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"{path / name} is damaged" in done.stderr
        assert (path / name).read_text() == '{"half'


def test_a_validation_set_below_one_sequence_is_an_error_before_compilation(home, tmp_path, monkeypatch):
    from smallbatch.training import run

    def compiled(*_):
        raise AssertionError("the validation set is checked first")

    monkeypatch.setattr(run, "Trainer", compiled)
    monkeypatch.setattr(run, "train_program", compiled)
    config = runs.tiny_config(home, {"model.context_tokens": 2048, "train.budget_tokens": 4096,
                                     "data.validation_max_bytes": 1000})  # fmt: skip
    for start in (lambda: run.train(config, tmp_path / "run"), lambda: run.dry_run(config)):
        with pytest.raises(records.UserError, match=r"validation split has \d+ tokens, but one sequence needs"):
            start()
