"""A study: every analysis of a run table, as sheets that the page, the files and the answers are made from."""

from dataclasses import dataclass

import numpy as np

from smallbatch.analysis import budgets, critical_batch, gaps, gradients, hardware, learning_rates, robustness, trials
from smallbatch.analysis.critical_batch import Critical
from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report.tables import Row, Sheet, point_text
from smallbatch.analysis.stats import equal_flops, surfaces


@dataclass(frozen=True)
class Questions:
    """What the person at the keyboard may change about the questions."""

    delta_nats: float = robustness.DELTA_NATS  # a loss this much above the best still counts as good
    target_loss_nats: float | None = None  # of costs and critical batch sizes; None: chosen from the runs
    overhead_frac: float = critical_batch.OVERHEAD_FRAC
    reference_batch_size: float | None = None  # None: the smallest


@dataclass(frozen=True, eq=False)
class Study:
    """A run table, what was asked of it, and a sheet for each analysis, by name; a sheet may have no rows."""

    table: RunTable
    questions: Questions
    sheets: dict[str, Sheet]
    critical: tuple[Critical, ...]

    def rows(self, name: str) -> tuple[Row, ...]:
        return self.sheets[name].rows


TITLES = {
    "equal_flops": "Loss at equal FLOPs",
    "gaps": "Gaps between arms",
    "loss_at_budgets": "Loss at shares of the budget",
    "loss_curves": "Loss along the budget",
    "cost_to_target": "Cost to reach a loss",
    "robustness": "Robustness to each hyperparameter",
    "robustness_profiles": "Rise of the loss over multipliers",
    "good_cells": "Share of the grid that is good",
    "random_trials": "Best loss after n random trials",
    "heat_maps": "Loss over two hyperparameters",
    "learning_rates": "Best learning rate",
    "learning_rate_laws": "Learning rate against batch size",
    "critical_batch": "Critical batch size",
    "critical_batch_laws": "Critical batch size against model and data",
    "steps_to_target": "Steps to the target loss",
    "gradients": "Gradients and updates",
    "noise_scale_fits": "Noise scale over batch sizes",
    "hardware": "Memory and throughput",
    "runs": "Runs",
}


def analyze(table: RunTable, questions: Questions = Questions()) -> Study:
    """Return all analyses of a run table."""
    q = questions
    measured = critical_batch.critical_batches(table, q.target_loss_nats, q.overhead_frac, q.reference_batch_size)
    gradient_rows = gradients.gradient_rows(table)
    rates, laws = learning_rates.learning_rates(table)
    rows = {
        "equal_flops": equal_flops.equal_flops(table),
        "gaps": gaps.gaps(table),
        "loss_at_budgets": budgets.loss_at_budgets(table),
        "loss_curves": budgets.loss_curves(table),
        "cost_to_target": budgets.cost_ratios(table, q.target_loss_nats),
        "robustness": robustness.robustness(table, q.delta_nats),
        "robustness_profiles": robustness.profiles(table),
        "good_cells": trials.share_within(table, q.delta_nats),
        "random_trials": trials.trials(table),
        "heat_maps": surfaces.surfaces(table),
        "learning_rates": rates,
        "learning_rate_laws": laws,
        "critical_batch": critical_batch.critical_rows(measured, gradient_rows),
        "critical_batch_laws": critical_batch.scaling_laws(measured),
        "steps_to_target": critical_batch.steps_rows(measured),
        "gradients": gradient_rows,
        "noise_scale_fits": gradients.noise_scale_fits(gradient_rows),
        "hardware": hardware.hardware(table),
        "runs": run_rows(table),
    }
    sheets = {name: Sheet(name, title, tuple(rows[name])) for name, title in TITLES.items()}
    return Study(table, questions, sheets, tuple(measured))


def run_rows(table: RunTable) -> list[Row]:
    """Return a row for every run that was asked for."""
    known = lambda value: float(value) if np.isfinite(value) else None
    return [
        {"setting": run.setting, "arm": run.arm, "batch_size": run.batch_size, "point": point_text(run.point),
         "seed": run.seed, "status": run.status, "loss_nats": known(run.loss_nats),
         "average_loss_nats": known(run.average_loss_nats),
         "validation_loss_se_nats": known(run.validation_loss_se_nats), "tokens": known(run.tokens),
         "flops": known(run.flops), "steps": known(run.steps), "secs": known(run.secs), "source": run.source}
        for run in table.runs
    ]  # fmt: skip
