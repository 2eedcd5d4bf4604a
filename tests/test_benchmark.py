"""The benchmark measures the program that the trainer runs, for each given batch size."""

import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import runs
from model_specs import tiny

from smallbatch import benchmark, config
from smallbatch.errors import UserError
from smallbatch.specs import MeshSpec, OptimizerSpec, ProgramSpec
from smallbatch.training import program as programs
from smallbatch.training import speed


def test_the_speed_of_each_batch_size_is_printed():
    model = ["--config.model.width=32", "--config.model.layers=1", "--config.model.context_tokens=32"]
    argv = [sys.executable, "-m", "smallbatch.benchmark", *model, "--batch_sizes=1,4", "--secs=0.1"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, cwd=runs.ROOT)
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert "28,672 parameters, adam, context 32" in head
    found = [re.match(r"batch +(\d+) +([\d,]+) tokens/s +([\d,.]+) GFLOP/s", line) for line in lines]
    assert [match and match[1] for match in found] == ["1", "4"]
    flops_per_token = 6 * (12 * 32**2 + 256 * 32) + 12 * 32 * 32
    for match in found:
        tokens_per_sec, gflops = (float(match[i].replace(",", "")) for i in (2, 3))
        assert abs(gflops - tokens_per_sec * flops_per_token / 1e9) < 0.06  # it has one decimal
    assert not any("MFU" in line for line in lines)  # the peak of a CPU is unknown


STAGE = SimpleNamespace(steps_per_dispatch=2, batch_size=3, tokens_per_step=12, hyperparams={})
PLAN = SimpleNamespace(first=STAGE, model=SimpleNamespace(context_tokens=4, vocab_size=8))


class Dispatches:
    """A program whose metrics record when they are awaited, by a clock that advances one second per dispatch."""

    def __init__(self):
        self.events, self.clock = [], 0.0

    def put_hyperparams(self, values):
        return values

    def init(self, hyperparams):
        return 0

    def put_tokens(self, sequences, first, updates):
        return sequences(first, updates * STAGE.batch_size)

    def train(self, state, hyperparams, tokens, updates):
        assert tokens.shape == (updates * STAGE.batch_size, PLAN.model.context_tokens + 1)
        events, number = self.events, state
        events.append(("dispatch", number))
        self.clock += 1

        class Loss:
            def __array__(self, dtype=None, copy=None):
                events.append(("wait", number))
                return np.zeros(updates)

        return state + 1, {"loss": Loss()}


def test_the_next_chunk_is_dispatched_before_waiting_and_all_chunks_are_counted(monkeypatch):
    dispatches = Dispatches()
    monkeypatch.setattr(speed.time, "perf_counter", lambda: dispatches.clock)
    tokens_per_sec = speed.measure(dispatches, PLAN, 3.0)
    warm_up = [("dispatch", 0), ("wait", 0), ("dispatch", 1), ("wait", 1)]
    measured = [("dispatch", 2), ("dispatch", 3), ("wait", 2), ("dispatch", 4), ("wait", 3), ("wait", 4)]
    assert dispatches.events == warm_up + measured
    assert tokens_per_sec == pytest.approx(2 * 12)  # one dispatch per second, of two updates of 12 tokens


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_the_peak_is_measured_at_the_precision_of_the_program(precision, monkeypatch):
    lowered, jit_of = [], programs.jit_of

    def spy(spec, f, **options):
        product = jit_of(spec, f, **options)
        lowered.append(product.lower(*[np.ones((8, 8), np.float32)] * 2).as_text())
        return product

    monkeypatch.setattr(programs, "jit_of", spy)
    spec = ProgramSpec(
        tiny(matmul_precision=precision), OptimizerSpec("sgd", "constant"), MeshSpec(1, 1, 1), "cpu", 1, 1, 1, 1
    )
    assert speed.matmul_peak_flops(spec, size=8, secs=0.01) > 0
    assert ("HIGHEST" in lowered[0]) == (precision == "highest")


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "node[01-02]", "SLURM_PROCID": "3", "SLURM_JOB_ID": "7"},
        {"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2", "TPU_WORKER_ID": "1"},
    ],
)
def test_a_benchmark_of_several_processes_is_an_error(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="measures a single process"):
        benchmark.main(config.quickstart(), SimpleNamespace(batch_sizes=(1,), secs=0.1))
