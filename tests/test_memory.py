"""The memory command: its table against arithmetic, and its errors."""

import re
import subprocess
import sys

import pytest
import runs

# 12 x 4 x 128^2 + 2 x 256 x 128 parameters; short sequences, so that activations are small in comparison.
PARAMS = 12 * 128**2 + 2 * 256 * 128
LORA = 16 * (8 * 128 + 2 * (128 + 512))
WORDS = ["--config.model.layers=1", "--config.model.context_tokens=16"]
UNITS = {"KiB": 2**10, "MiB": 2**20}


def memory(*words: str) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "smallbatch.memory", *WORDS, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, cwd=runs.ROOT)


def test_memory_of_weights_state_gradients_and_lora_equals_arithmetic():
    done = memory("--optimizers=sgd,adam", "--batch_sizes=1,8")
    assert done.returncode == 0, done.stderr
    first, head, *lines = done.stdout.splitlines()
    assert first.startswith(f"{PARAMS:,} parameters in float32") and head.split("  ")[-1].strip() == "8 in 8 parts"
    names = [line[:20].strip() for line in lines]
    sizes = [re.findall(r"([\d.]+) (KiB|MiB)", line) for line in lines]
    table = [[float(number) * UNITS[unit] for number, unit in row] for row in sizes]
    found = {
        name: dict(zip(("fixed", "one", "eight", "summed"), row, strict=True))
        for name, row in zip(names, table, strict=True)
    }
    near = lambda expected: pytest.approx(expected, rel=0.01)
    assert found["sgd"]["fixed"] == near(4 * PARAMS) and found["adam"]["fixed"] == near(12 * PARAMS)
    assert found["lora, rank 16"]["fixed"] == near(4 * PARAMS + 16 * LORA)
    for name in ("sgd", "adam"):
        assert found[name]["fixed"] < found[name]["one"] < found[name]["eight"]
        sums = found[name]["summed"] - found[name]["one"]  # a full set of gradients, which batch size 1 never stores
        assert 3 * PARAMS < sums < 4.5 * PARAMS
    assert (
        found["lora, rank 16"]["summed"] == found["lora, rank 16"]["one"]
    )  # of its adapters alone, counted in "fixed"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--optimizers=adm"], "--optimizers is 'adm', but must be one of "),
        (["--batch_sizes=0"], "--batch_sizes is 0, but must be an integer in [1, 2^16]"),
        (["--batch_sizes="], "--batch_sizes is '', but must be an integer in [1, 2^16]"),
        (["--config.mesh.fsdp=2", "--batch_sizes=1,2", "--optimizers=sgd"], "1 sequences is not divisible"),
    ],
)
def test_a_usage_error_is_one_line(words, says):
    done = memory(*words)
    assert (
        done.returncode == 2
        and says in done.stderr
        and done.stderr.count("error") == 1
        and "Traceback" not in done.stderr
    )
