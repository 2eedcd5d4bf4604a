"""The sample command on a run directory with a plan, a tokenizer and a checkpoint only."""

import dataclasses
import json
import sys

import jax
import pytest
from model_specs import params_of, tiny

from smallbatch import config as configs
from smallbatch import sample
from smallbatch.config import cli
from smallbatch.data.tokenizers import BytesTokenizer
from smallbatch.errors import UserError
from smallbatch.runs import records
from smallbatch.runs.run_dir import RunDir
from smallbatch.training import trained_run
from smallbatch.training.checkpoint import Checkpoints
from smallbatch.training.jax_setup import start_jax

SPEC = tiny(layers=1, vocab_size=256)


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    BytesTokenizer().save(tmp_path / "tokenizer")
    (tmp_path / "plan.json").write_text(
        json.dumps({"model": dataclasses.asdict(SPEC), "optimizer": {"name": "adam"}, "seed": 0})
    )
    return tmp_path


def command(monkeypatch, capfd, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["sample", *words])
    with pytest.raises(SystemExit) as ended:
        cli.run(sample.main, sample.FLAGS, config=False)
    return ended.value.code, *capfd.readouterr()


def test_prompt_is_continued_with_the_last_checkpoint(run_dir, monkeypatch, capfd):
    checkpoints = Checkpoints(run_dir / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, {"params": params_of(SPEC, seed=step), "opt_state": params_of(SPEC)}, {})
    checkpoints.close()
    words = (f"--run={run_dir}", "--prompt=äb", "--tokens=50", "--temperature=1.5")
    code, out, err = command(monkeypatch, capfd, *words)
    assert code == 0 and out.startswith("äb") and len(out) > 4
    assert err in ("", "(the context of 16 tokens is full)\n")
    assert command(monkeypatch, capfd, *words)[1] == out
    assert command(monkeypatch, capfd, *words, "--seed=1")[1] != out
    assert command(monkeypatch, capfd, *words, "--top_p=2")[::2] == (
        2,
        "error: --top_p is 2.0, but must be a number in [1e-06, 1]\n",
    )
    (run_dir / "checkpoints" / "2" / "_CHECKPOINT_METADATA").unlink()
    code, out_of_1, err = command(monkeypatch, capfd, *words)
    assert code == 0 and out_of_1 != out
    assert "2 is damaged" in err.splitlines()[0]


def test_missing_or_damaged_plan_is_recomputed(run_dir):
    config = configs.quickstart()
    keys = ("width", "layers", "head_width", "ffn_width", "context_tokens", "rope_base", "matmul_precision")
    config.model.update({key: getattr(SPEC, key) for key in keys})
    config.train.budget_tokens, config.mesh.tensor = 2**16, 2
    records.write_json(run_dir / "config.json", config.to_dict())
    workdir = RunDir(run_dir)
    for content in (None, "", "[]", '{"model": {}, "optimizer": {"name": "adam"}}'):
        workdir.plan.unlink(missing_ok=True)
        if content is not None:
            workdir.plan.write_text(content)
        assert trained_run.read_plan(workdir, 256)["model"] == {**dataclasses.asdict(SPEC), "max_logits": 2**26}
    workdir.config.unlink()
    with pytest.raises(UserError, match=r"plan.json is damaged, or is not the plan of a run"):
        trained_run.read_plan(workdir, 256)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--run is unset; set it to a run directory"),
        (["--run=nowhere"], "nowhere is not a run directory"),
        (["--run={}"], "has no checkpoint; train first"),
        (["--run={}", "--promt=x"], "did you mean --prompt?"),
        (["--run={}", "--prompt=caf\udce9"], "is not UTF-8; use a UTF-8 terminal"),
    ],
)
def test_usage_error_is_one_line_with_exit_code_2(run_dir, monkeypatch, capfd, words, message):
    code, out, err = command(monkeypatch, capfd, *[word.format(run_dir) for word in words])
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_run_without_tokenizer_is_an_error(run_dir, monkeypatch, capfd):
    (run_dir / "tokenizer" / "tokenizer_config.json").unlink()
    code, _, err = command(monkeypatch, capfd, f"--run={run_dir}")
    assert code == 2 and "has no tokenizer" in err


def test_schedule_free_run_is_sampled_at_its_interpolated_weights(run_dir, monkeypatch, capfd):
    y, z = params_of(SPEC, seed=1), params_of(SPEC, seed=2)
    average = {name: (y[name] - 0.25 * z[name]) / 0.75 for name in y}
    words = (f"--run={run_dir}", "--prompt=a", "--tokens=12", "--temperature=1.5")
    sampled = []
    for step, (name, state) in enumerate([("schedule_free_sgd", y), ("adam", average), ("adam", y)], 1):
        plan = {
            "model": dataclasses.asdict(SPEC),
            "optimizer": {"name": name},
            "stages": [{"hyperparams": {"interpolation": 0.75}}],
        }
        (run_dir / "plan.json").write_text(json.dumps(plan))
        checkpoints = Checkpoints(run_dir / "checkpoints")
        checkpoints.save(step, {"params": state, "opt_state": {"z": z}}, {})
        checkpoints.close()
        sampled.append(command(monkeypatch, capfd, *words)[1])
    assert sampled[0] == sampled[1] != sampled[2]


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'tpu': none\nmore")])
def test_missing_platform_is_one_line(run_dir, tmp_path, monkeypatch, capfd, error):
    """JAX raises a bare AssertionError for a GPU without a plugin."""

    def fail():
        raise error

    monkeypatch.setattr(jax, "local_devices", fail)
    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(
        UserError, match=r"JAX has no device of JAX_PLATFORMS=cpu.*Installed: jax .*Unset JAX_PLATFORMS"
    ):
        start_jax(1, tmp_path)
    code, out, err = command(monkeypatch, capfd, f"--run={run_dir}", "--prompt=a")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "JAX has no device of JAX_PLATFORMS=cpu" in err
