"""Compute how much tuning a batch size needs: the best loss of n random trials, and the fraction of good configs.

The trials are n different configs of a grid in random order. The expected best loss has an exact formula, so nothing is
simulated. A diverged config counts as a trial with a loss of +inf.
"""

from collections.abc import Iterator

import numpy as np
from scipy.special import gammaln

from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report import drawing
from smallbatch.analysis.report.options import Options
from smallbatch.analysis.report.section import Analysis, Figure, Section, Table
from smallbatch.analysis.report.tables import Row, batch_text, column, group_columns, split
from smallbatch.analysis.stats import intervals


def chance_none_of(best: np.ndarray, cells: int, trials: int) -> np.ndarray:
    """Return the probability that n of N configs include none of the k best: C(N - k, n) / C(N, n)."""
    left = cells - best
    possible = left >= trials
    safe = np.where(possible, left, trials)
    log = gammaln(safe + 1) - gammaln(safe - trials + 1) - gammaln(cells + 1) + gammaln(cells - trials + 1)
    return np.where(possible, np.exp(log), 0.0)


def expected_best(losses_nats: np.ndarray, trials: int) -> float:
    """Return the expected lowest loss of n configs drawn without replacement from a grid of N.

    E = sum_k x_(k) C(N - k, n - 1) / C(N, n) over the losses in ascending order; +inf if n configs may all diverge.
    Source: the estimator without replacement of Tang et al. 2020 (arXiv 2009.14578, section 3), after Dodge et al. 2019
    (arXiv 1909.03004, equation 8).
    """
    x = np.sort(losses_nats)
    none = chance_none_of(np.arange(len(x) + 1), len(x), trials)
    chance = none[:-1] - none[1:]  # that the k-th is the best of the n
    return float(np.where(chance > 0, x, 0.0) @ chance)


def quantile_best(losses_nats: np.ndarray, trials: int, quantile: float) -> float:
    """Return this quantile of the lowest loss of n random configs."""
    x = np.sort(losses_nats)
    reached = 1 - chance_none_of(np.arange(1, len(x) + 1), len(x), trials)
    return float(x[min(int(np.searchsorted(reached, quantile - 1e-12)), len(x) - 1)])


def trials(runs: RunTable) -> list[Row]:
    """Return the expected best loss after n trials of each grid, and the central 90% of searches."""
    rows: list[Row] = []
    for group in runs.groups:
        losses = group.mean_P[~np.isnan(group.mean_P)]
        if len(losses) < 2 or not np.isfinite(losses).any():
            continue
        for n in range(1, len(losses) + 1):
            low, high = (quantile_best(losses, n, quantile) for quantile in intervals.TAILS)
            rows.append(
                {
                    **group_columns(group),
                    "trials": n,
                    "expected_best_loss_nats": expected_best(losses, n),
                    "best_loss_nats_low": low,
                    "best_loss_nats_high": high,
                }
            )
    return rows


def share_within(runs: RunTable, delta_nats: float) -> list[Row]:
    """Return the fraction of all configs of a grid, also diverged ones, within delta of the lowest mean loss."""
    rows: list[Row] = []
    for group in runs.groups:
        losses = group.mean_P[~np.isnan(group.mean_P)]
        if not np.isfinite(losses).any():
            continue
        within = int((losses <= losses.min() + delta_nats).sum())
        rows.append(
            {
                **group_columns(group),
                "delta_nats": delta_nats,
                "cells": len(losses),
                "cells_within_delta": within,
                "within_delta_frac": within / len(losses),
                "diverged_frac": float(np.isinf(losses).mean()),
                "missing_cells": len(group.points) - len(losses),
            }
        )
    return rows


def tables(runs: RunTable, options: Options) -> list[Table]:
    return [
        Table("good_cells", "Fraction of good configs", share_within(runs, options.delta_nats)),
        Table("random_trials", "Best loss after n random trials", trials(runs), in_summary=False),
    ]


def figures(analysis: Analysis) -> Iterator[Figure]:
    for (setting, method), rows in split(analysis.rows("random_trials"), "setting", "arm").items():
        axes = drawing.new_axes("random trials", f"{method}: expected best loss (nats) by batch size")
        for (size,), own in split(rows, "batch_size").items():
            x, y = column(own, "trials"), column(own, "expected_best_loss_nats")
            low, high = column(own, "best_loss_nats_low"), column(own, "best_loss_nats_high")
            known = np.isfinite(y)
            if known.sum() < 2:
                continue
            colour = drawing.batch_colour(size)
            axes.plot(x[known], y[known], color=colour, marker="o", markersize=3, label=batch_text(size))
            band = known & np.isfinite(high)
            axes.fill_between(x[band], low[band], high[band], color=colour, alpha=0.12, linewidth=0)
        if axes.lines:
            drawing.count_axis(axes.xaxis, log=False, whole=True)
            caption = (
                f"{method}: expected best loss of n random configs of the grid{analysis.in_setting(setting)}; bands: "
                "central 90% of searches. A line starts where n trials cannot all diverge."
            )
            yield Figure(f"trials-{setting}-{method}", axes, caption, "random_trials")


SECTION = Section(
    name="search",
    title="Tuning effort",
    description=(
        "Expected best loss of n different configs of the grid in random order, computed exactly. A diverged config "
        "counts as a trial."
    ),
    tables=tables,
    figures=figures,
    empty=lambda analysis: "Random search needs a grid of two configs or more at the same batch size.",
)
