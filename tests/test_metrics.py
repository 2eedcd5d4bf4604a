"""Records of the metrics logger against computed means and times, and after a resumed crash."""

import itertools
import math
import time

import numpy as np
import pytest

from smallbatch import config as configs
from smallbatch.plan import plan
from smallbatch.runs import records
from smallbatch.specs import DeviceSpec
from smallbatch.training.metrics import MetricsLogger


class Run:
    """A metrics logger that records every 10 steps of 64, at 2 x 256 tokens."""

    def __init__(self, path, saved=None, vocab_size: int = 256):
        c = configs.quickstart()
        c.train.batch_size, c.train.budget_tokens = 16, 2**21
        c.train.batch_size, c.train.budget_tokens, c.train.log_every_tokens = 2, 512 * 64, 5120
        self.plan = plan.make(c, vocab_size=vocab_size, devices=DeviceSpec("cpu", 1))
        self.path = path / "metrics.jsonl"
        records.rewind(self.path, saved.records if saved else 0)
        self.metrics_logger = MetricsLogger(self.plan, records.MetricsWriter(self.path), [], saved)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.metrics_logger.close()

    def add(self, step: int, losses) -> int | None:
        return self.metrics_logger.add(step, {"loss": np.asarray(losses, np.float32)})

    def written(self) -> list[dict]:
        return records.read_metrics(self.path)


def test_record_is_the_mean_since_the_last_one_for_any_chunks(tmp_path):
    losses = np.random.default_rng(0).uniform(1, 6, 64).astype(np.float32)
    found = []
    for name, cuts in (("a", range(0, 65, 1)), ("b", [0, 3, 10, 20, 29, 30, 40, 50, 60, 64])):
        (tmp_path / name).mkdir()
        with Run(tmp_path / name) as run:
            for start, end in itertools.pairwise(cuts):
                assert run.add(end, losses[start:end]) is None
        found.append([(r["step"], r["loss_nats"]) for r in run.written()])
    assert found[0] == found[1]
    ends = [10, 20, 30, 40, 50, 60, 64]
    assert [step for step, _ in found[0]] == ends
    for (_, mean), start, end in zip(found[0], [0, *ends[:-1]], ends, strict=True):
        assert mean == pytest.approx(losses[start:end].astype(np.float64).mean(), rel=1e-12)


def test_record_has_tokens_flops_and_the_learning_rate_of_the_last_update(tmp_path):
    with Run(tmp_path) as run:
        run.add(10, np.ones(10))
    (record,) = run.written()
    assert record["tokens"] == 5120 and record["flops"] == 5120 * run.plan.flops_per_token
    assert record["learning_rate"] == run.plan.learning_rate(9)


def test_a_resumed_logger_writes_the_records_of_an_uninterrupted_one(tmp_path):
    losses = np.random.default_rng(1).uniform(1, 6, 64).astype(np.float32)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    with Run(tmp_path / "whole") as whole:
        for step in range(2, 65, 2):
            whole.add(step, losses[step - 2 : step])
    with Run(tmp_path / "cut") as first:
        for step in range(2, 25, 2):
            first.add(step, losses[step - 2 : step])
        saved = first.metrics_logger.progress()
        first.add(30, losses[24:30] + 1)  # a record that is lost with the process that wrote it
    assert len(first.written()) == 3
    with Run(tmp_path / "cut", saved) as second:
        assert second.metrics_logger.last_loss_nats == whole.written()[1]["loss_nats"]
        for step in range(26, 65, 2):
            second.add(step, losses[step - 2 : step])
        assert second.metrics_logger.secs >= saved.secs and second.metrics_logger.train_secs >= saved.train_secs
    numbers = lambda run: [{k: v for k, v in r.items() if k not in records.WALL_CLOCK_FIELDS} for r in run.written()]
    assert numbers(second) == numbers(whole)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_ends_the_run_at_its_step(tmp_path, bad):
    with Run(tmp_path) as run:
        assert run.add(4, [3, 3, 3, 3]) is None
        assert run.add(8, [3, 3, bad, 3]) == 7
    assert [(r["step"], r["loss_nats"]) for r in run.written()] == [(7, None)]


def test_a_mean_far_above_an_untrained_model_ends_the_run_and_one_bad_batch_does_not(tmp_path):
    start = math.log(256) + 0.5
    with Run(tmp_path) as run:
        assert run.add(10, [start + 2.9] * 10) is None
        assert run.add(20, [3.0] * 9 + [start + 20]) is None  # one step is far above, but not the mean
        assert run.add(29, [start + 3.1] * 9) is None  # not before the record
        assert run.add(30, [start + 3.1]) == 30
    with Run(tmp_path, vocab_size=50257) as large:
        assert large.add(10, [start + 3.1] * 10) is None  # log V is higher


def test_pauses_do_not_count_as_training(tmp_path):
    with Run(tmp_path) as run:
        with run.metrics_logger.pause():
            time.sleep(0.2)
        train_secs, secs = run.metrics_logger.train_secs, run.metrics_logger.secs
    assert secs >= 0.2 and secs - train_secs >= 0.2


def test_the_training_clock_stops_in_a_pause_and_nested_pauses_count_once(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Run(tmp_path) as run:
        clock[0] = 1.0
        with run.metrics_logger.pause():
            clock[0] = 3.0
            assert run.metrics_logger.train_secs == 1.0
            with run.metrics_logger.pause():
                clock[0] = 6.0
            assert run.metrics_logger.train_secs == 1.0
        clock[0] = 8.0
        assert (run.metrics_logger.train_secs, run.metrics_logger.secs) == (3.0, 8.0)


def test_speed_is_that_of_the_steps_since_the_last_record(tmp_path):
    with Run(tmp_path) as run:
        began = time.monotonic()
        run.metrics_logger.mark(0)
        time.sleep(0.1)
        run.add(10, np.ones(10))
        ended = time.monotonic()
    assert 5120 / (ended - began) <= run.written()[0]["tokens_per_sec"] <= 5120 / 0.1


def test_diagnostics_are_means_and_the_noise_scale_is_the_ratio_of_means(tmp_path):
    values = {
        "loss": np.full(10, 3.0),
        "clipped": np.repeat([1.0, 0.0], 5),
        "grad_norm": np.arange(10.0),
        "grad_signal_sq": np.array([np.nan, *range(1, 10)]),
        "grad_noise_sq": np.array([np.nan, *range(10, 100, 10)]),
        "update_norm": np.full(10, 0.5),
        "update_rms": np.full(10, 0.1),
        "update_cosine": np.full(10, np.nan),
    }
    with Run(tmp_path) as run:
        for half in (slice(0, 5), slice(5, 10)):
            run.metrics_logger.add(half.stop, {name: x[half].astype(np.float32) for name, x in values.items()})
    (record,) = run.written()
    assert (record["clipped_frac"], record["grad_norm"], record["update_norm"]) == (0.5, 4.5, 0.5)
    assert (record["grad_signal_sq"], record["grad_noise_sq"], record["update_cosine"]) == (5.0, 50.0, None)
    assert record["noise_scale_tokens"] == pytest.approx(10 * 256)
    assert record["path_per_token"] == pytest.approx(0.5 / 512)
