"""The printed plan and result: the numbers of the plan and the result, and warnings."""

import dataclasses
from pathlib import Path

from test_records import RESULT

from smallbatch import config as configs
from smallbatch.plan import plan
from smallbatch.runs import summary
from smallbatch.specs import DeviceSpec


def text(dataset_tokens=None, platform="gpu", **changes) -> str:
    c = configs.quickstart()
    c.train.batch_size, c.train.budget_tokens = 16, 2**21
    for name, value in changes.items():
        section, _, key = name.partition("__")
        c[section][key] = value
    made = plan.make(c, vocab_size=256, devices=DeviceSpec(platform, 1))
    return " ".join(summary.plan_text(made, dataset_tokens).split())


def test_plan_shows_budget_warmup_and_half_lives_in_every_unit():
    shown = text()
    assert "2,097,152 tokens = 512 steps" in shown
    assert "warm-up of 104,858 tokens = 25.6 steps = 5.0% of the run" in shown
    assert "half-life 1,000,000 tokens = 244.1 steps = 47.68% of the run" in shown
    assert "0.9 per step (1 - b1 = 0.1)" in shown


def test_plan_shows_requested_budget_first_rates_and_warnings():
    shown = text(train__batch_size=3, optimizer__t2_tokens=1e7)
    assert "2,097,408 tokens = 2,731 steps (train.budget_tokens=2,097,152, rounded up to whole updates)" in shown
    assert "at the midpoint of each update: 1.1e-05, 3.3e-05, 5.49e-05" in shown
    assert "warning: the half-life of b2 is 10,000,000 tokens, longer than the run of 2,097,408" in shown
    assert "rounded up" not in text() and "warning" not in text()
    short = text(train__budget_tokens=10 * 4096, optimizer__warmup_frac=0.05)
    assert "= 0.5 steps" in short and "update: 0.003, " in short


def test_plan_shows_what_stays_constant_in_a_batch_size_schedule():
    growth = {"train__batch_size_schedule": "1048576:64", "train__batch_size_lr_rule": "sqrt"}
    assert (
        "from 1,048,576 peak learning rate 0.006; b1 stays constant per step, half-lives of b2 stay constant in tokens"
        in text(**growth)
    )
    sgd = {"optimizer__name": "sgd", "optimizer__peak_lr": 0.3, "optimizer__b1": None, "optimizer__t2_tokens": None}
    assert "; no averages" in text(**growth, **sgd)


def test_run_starts_with_the_warnings_of_its_plan():
    c = configs.quickstart()
    c.optimizer.t2_tokens = 1e8
    made = plan.make(c, vocab_size=256, devices=DeviceSpec("cpu", 1))
    first, second = summary.start_text(made, 10**6, 1, "cpu").splitlines()
    assert first.startswith("918k parameters") or "parameters" in first
    assert second.startswith("warning: the half-life of b2 is 100,000,000 tokens")


def test_plan_reports_more_than_one_epoch():
    assert "0.50 of 4,194,304 training tokens" in text(2**22)
    assert "2.00 of 1,048,576 training tokens; sequences repeat" in text(2**20)
    assert "unknown until the dataset is prepared" in text()


def test_plan_advises_against_accumulation():
    assert "micro-batches" not in text()
    shown = text(train__microbatch_size=4)
    assert "4 micro-batches of 4" in shown and "usually learn more per FLOP" in shown


def test_plan_on_a_cpu_shows_micro_batches_of_one_sequence():
    shown = text(platform="cpu")
    assert "in 16 micro-batches of one sequence per device" in shown


def test_plan_of_sgd_has_no_averages_and_no_eps():
    shown = text(optimizer__name="sgd", optimizer__peak_lr=0.3, optimizer__b1=None, optimizer__t2_tokens=None)
    assert (
        "half-life" not in shown and " eps " not in shown and " eps " in text() and "sgd, peak learning rate" in shown
    )


def result_text(**changes) -> str:
    return summary.result_text(dataclasses.replace(RESULT, **changes), Path("runs/x"))


def test_result_omits_unknown_values():
    known = result_text(
        status="done", validation_loss_nats=1.25, bits_per_byte=1.8034, perplexity=3.4903, sample="a\nb"
    )
    assert "1.2500 nats/token   1.8034 bits/byte   perplexity 3.490" in known and known.endswith("sample\n    a\n    b")
    huge = result_text(status="done", validation_loss_nats=1000.0, bits_per_byte=None, perplexity=None)
    assert "1000.0000 nats/token\n" in huge
    diverged = result_text(
        status="diverged", diverged_at_step=1234, validation_loss_nats=None, bits_per_byte=None, perplexity=None
    )
    assert "diverged at step 1,234; lower the learning rate" in diverged and "nats/token" not in diverged
    assert "status      stopped and saved; rerun the same command to resume" in result_text(status="stopped")
