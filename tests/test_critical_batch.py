"""Critical batch sizes, budgets and costs of sweeps with known curves."""

import dataclasses

import numpy as np
import pytest
from grids import CONTEXT_TOKENS, Cell, table_of, write_sweep

from smallbatch.analysis import budgets, cost, critical_batch, gradients
from smallbatch.analysis.read import sweeps
from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report.options import Options
from smallbatch.files.json_files import read as read_json
from smallbatch.runs.records import write_json

SIZES = (1, 2, 4, 8, 16, 32)
BUDGET_TOKENS = 2**24  # whole steps between records at every batch size
A, B = 20.0, 400.0  # steps to reach 3 nats: A + B / batch size


def measured(table: RunTable, **options) -> list[critical_batch.Critical]:
    return critical_batch.critical_batches(table, Options(**options))


def curve(batch_size):
    """Return a loss that falls linearly and reaches 3 nats after A + B / batch size steps."""
    steps = BUDGET_TOKENS / CONTEXT_TOKENS / batch_size
    return lambda share: 5.0 - 2.0 * share * steps / (A + B / batch_size)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    cells = [
        Cell({"train.batch_size": b, "train.budget_tokens": BUDGET_TOKENS}, float(curve(b)(1.0)), curve=curve(b),
             records=512, tokens_per_sec=1e4 * b**0.5,
             extra={"grad_norm": lambda _, b=b: 0.97 * (2 + 60 / b) ** 0.5, "update_norm": lambda _, b=b: 0.1 * b,
                    "grad_signal_sq": lambda _: 2.0, "grad_noise_sq": lambda _: 60.0})
        for b in SIZES
    ]  # fmt: skip
    return sweeps.read([write_sweep(tmp_path_factory.mktemp("sweep"), cells)])


def test_a_known_law_of_steps_gives_its_critical_batch_size(table):
    (found,) = measured(table, target_loss_nats=3.0)
    assert found.steps == pytest.approx(A + B / np.array(SIZES), rel=1e-6)
    assert (found.law.a, found.law.b) == pytest.approx((A, B), rel=1e-6)
    assert found.batch_size == pytest.approx(1.2 * 1 + 0.2 * 20)


def test_overhead_and_reference_change_the_number_and_its_definition(table):
    (found,) = measured(table, target_loss_nats=3.0, overhead_frac=0.5, reference_batch_size=4)
    assert found.batch_size == pytest.approx(1.5 * 4 + 0.5 * 20)
    assert found.definition == (
        "largest batch size whose steps to a training loss of 3 nats are at most 1.5x perfect scaling from batch size 4"
    )
    # by the definition itself: at B* the steps are exactly 1.5 x those of perfect scaling
    steps = lambda size: A + B / size
    assert steps(found.batch_size) == pytest.approx(1.5 * steps(4) * 4 / found.batch_size)


def test_batch_sizes_that_never_or_immediately_reach_the_target_are_excluded(table):
    lowest = float(curve(32)(1.0))
    (found,) = measured(table, target_loss_nats=lowest - 0.5)
    assert found.not_reached == (32.0,) and 32 not in found.batch_sizes
    first = [float(c.loss_nats[0]) for run in table.runs if (c := budgets.curve_of(run, "training"))]
    (found,) = measured(table, target_loss_nats=sorted(first)[3])
    assert set(found.before_first_record) == {
        size for size, loss in zip(SIZES, first, strict=True) if loss <= sorted(first)[3]
    }


def test_costs_match_known_curves(table):
    rows = {row["batch_size"]: row for row in cost.cost_ratios(table, target_nats=3.0)}
    tokens = {b: (A * b + B) * CONTEXT_TOKENS for b in SIZES}
    for b in SIZES:
        assert rows[b]["tokens"] == pytest.approx(tokens[b], rel=1e-6)
        assert rows[b]["flops_ratio"] == pytest.approx(tokens[b] / tokens[1], rel=1e-6)
        assert rows[b]["secs"] == pytest.approx(tokens[b] / (1e4 * b**0.5), rel=1e-6)
    assert min(row["secs_ratio"] for row in rows.values()) == 1.0
    never = cost.cost_ratios(table, target_nats=-1e6)
    assert all(np.isinf(row["flops"]) and np.isnan(row["flops_ratio"]) for row in never)


def test_half_of_the_grids_reach_the_default_target(table):
    rows = cost.cost_ratios(table)
    reached = sum(np.isfinite(row["flops"]) for row in rows)
    assert len(SIZES) / 2 <= reached < len(SIZES)


def test_losses_at_budgets_match_known_curves(table):
    rows = [row for row in budgets.loss_at_budgets(table) if row["batch_size"] == 8 and row["axis"] == "tokens"]
    assert [row["budget"] for row in rows] == [BUDGET_TOKENS / 8, BUDGET_TOKENS / 4, BUDGET_TOKENS / 2, BUDGET_TOKENS]
    shares = np.array([0.125, 0.25, 0.5, 1 - 0.5 / 512])  # the last record's middle
    assert [row["loss_nats"] for row in rows] == pytest.approx(curve(8)(shares), rel=1e-6)


def test_a_fit_over_batch_sizes_gives_the_noise_scale(table):
    rows = gradients.gradient_rows(table)
    assert [row["noise_scale_seqs"] for row in rows] == pytest.approx([30.0] * len(SIZES))
    assert rows[0]["noise_scale_tokens"] == pytest.approx(30.0 * CONTEXT_TOKENS)
    assert [row["grad_norm_sq"] for row in rows] == pytest.approx([2 + 60 / b for b in SIZES])  # E|g|^2, not (E|g|)^2
    (fit,) = gradients.noise_scale_fits(rows)
    assert (fit["signal_sq"], fit["noise_sq"], fit["noise_scale_seqs"]) == pytest.approx((2.0, 60.0, 30.0), rel=1e-6)
    (row,) = critical_batch.critical_rows(measured(table, target_loss_nats=3.0), rows)
    assert row["median_noise_scale_seqs"] == pytest.approx(30.0)


def test_noise_scales_of_successive_gradients_have_their_own_column(table):
    marked = [
        dataclasses.replace(run, gradients=run.gradients | {"noise_from_successive_gradients": 1.0})
        for run in table.runs
    ]
    rows = gradients.gradient_rows(dataclasses.replace(table, runs=tuple(marked)))
    assert {row["noise_scale_seqs"] for row in rows} == {row["noise_scale_tokens"] for row in rows} == {None}
    found = [row["biased_noise_scale_seqs_of_successive_gradients"] for row in rows]
    assert found == pytest.approx([30.0] * len(SIZES))
    (row,) = critical_batch.critical_rows(measured(table, target_loss_nats=3.0), rows)
    assert row["median_noise_scale_seqs"] is None


def test_the_cost_is_that_of_the_cheapest_config(tmp_path):
    slow = lambda share: 5.0 - 2.0 * share
    fast = lambda share: 5.0 - 2.5 * share
    cells = [
        Cell({"train.batch_size": 4, "optimizer.peak_lr": lr, "train.seed": s}, 3.0, curve=c, records=128)
        for lr, c in ((1e-3, slow), (2e-3, fast)) for s in (0, 1)
    ]  # fmt: skip
    (row,) = cost.cost_ratios(sweeps.read([write_sweep(tmp_path, cells)]), target_nats=4.0)
    assert row["tokens"] == pytest.approx(0.4 * 2**20)


def test_three_model_sizes_give_a_scaling_law(tmp_path):
    cells = [
        Cell({"train.batch_size": b, "model.width": w, "train.budget_tokens": BUDGET_TOKENS}, 2.0, records=512,
             curve=lambda s, b=b, w=w: 5.0 - 2.0 * s * BUDGET_TOKENS / CONTEXT_TOKENS / b / (20 + 20 * (w / 4) / b))
        for w in (64, 128, 256) for b in (1, 2, 4, 8, 16)
    ]  # fmt: skip
    path = write_sweep(tmp_path, cells)
    for result in path.glob("cells/*/result.json"):
        width = read_json(result.parent / "config.json")["model"]["width"]
        write_json(result, read_json(result) | {"params": 100 * width})
    found = measured(sweeps.read([path]), target_loss_nats=3.5)
    assert [c.batch_size for c in found] == pytest.approx([1.2 + 0.2 * w / 4 for w in (64, 128, 256)], rel=1e-4)
    (law,) = critical_batch.scaling_laws(critical_batch.critical_rows(found))
    expected = np.polyfit(np.log([64, 128, 256]), np.log([1.2 + 0.2 * w / 4 for w in (64, 128, 256)]), 1)[0]
    assert law["against"] == "params" and law["exponent"] == pytest.approx(expected, rel=1e-4)


def steps_table(sizes, steps):
    """Return a run table of steps to one loss, one run per batch size."""
    cells = [Cell({"train.batch_size": b}, 3.0) for b in sizes]
    runs = zip(table_of(cells).runs, steps, strict=True)
    return RunTable(tuple(dataclasses.replace(run, steps=float(count)) for run, count in runs))


def critical_row(sizes, steps, **options):
    (row,) = critical_batch.critical_rows(measured(steps_table(sizes, steps), **options))
    return row


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_perfect_scaling_gives_only_a_lower_bound(noise):
    sizes = [1, 2, 4, 8, 16]
    steps = 100_000 / np.array(sizes) * np.exp(noise * np.array([1, -1, 0, 1, -1]))
    row = critical_row(sizes, steps)
    assert row["critical_batch_size"] is None and row["b_over_a_seqs"] is None and not row["beyond_measured"]
    assert 16 < row["critical_batch_size_low"] < 200 and row["critical_batch_size_high"] == np.inf
    assert critical_batch.estimate_text(row).startswith("at least ")


@pytest.mark.parametrize("reference", [None, 64])
def test_batch_sizes_above_the_critical_one_give_only_an_upper_bound(reference):
    row = critical_row([64, 256, 1024, 4096], [2000, 2010, 1995, 2000], reference_batch_size=reference)
    assert row["critical_batch_size"] is None  # it would be 1.2 x the reference batch size, whatever the data
    assert row["critical_batch_size_low"] == 0 and 76.8 < row["critical_batch_size_high"] < 100
    assert critical_batch.estimate_text(row).startswith("at most ")


def test_three_scattered_batch_sizes_give_no_bound():
    row = critical_row([16, 64, 256], [9000, 2000, 2000])
    assert row["critical_batch_size"] is None
    assert (row["critical_batch_size_low"], row["critical_batch_size_high"]) == (0, np.inf)
    assert critical_batch.estimate_text(row).startswith("unknown: the data give no bound")


def test_a_critical_batch_size_without_an_estimate_is_excluded_from_scaling_laws():
    perfect = measured(steps_table([1, 2, 4, 8], [8000, 4000, 2000, 1000]))
    known = measured(steps_table(SIZES, A + B / np.array(SIZES)))
    three = [dataclasses.replace(known[0], params=n) for n in (1e6, 2e6, 4e6)]
    rows = critical_batch.critical_rows([*three, dataclasses.replace(perfect[0], params=8e6)])
    (law,) = critical_batch.scaling_laws(rows)
    assert law["points"] == 3 and law["exponent"] == pytest.approx(0, abs=1e-9)
