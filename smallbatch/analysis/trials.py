"""How much tuning a batch size needs: the best loss of n random trials, and the share of a grid that is good.

One idea: try n different cells of a grid in random order. The expected best of them has an exact formula, so nothing is
simulated; a diverged cell is a trial that was spent and came to +inf.
"""

import numpy as np
from scipy.special import gammaln

from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report.tables import Row
from smallbatch.analysis.stats import intervals


def chance_none_of(best: np.ndarray, cells: int, trials: int) -> np.ndarray:
    """Return the chance that n different cells of N have none of the k best: C(N - k, n) / C(N, n)."""
    left = cells - best
    possible = left >= trials
    safe = np.where(possible, left, trials)
    log = gammaln(safe + 1) - gammaln(safe - trials + 1) - gammaln(cells + 1) + gammaln(cells - trials + 1)
    return np.where(possible, np.exp(log), 0.0)


def expected_best(losses_nats: np.ndarray, trials: int) -> float:
    """Return the expected lowest loss of n cells drawn without replacement from the N of a grid.

    E = sum_k x_(k) C(N - k, n - 1) / C(N, n) over the losses in ascending order; +inf as long as n cells could all have
    diverged. Source: the estimator without replacement of Tang et al. 2020 (arXiv 2009.14578, section 3) to Dodge et
    al. 2019 (arXiv 1909.03004, equation 8).
    """
    x = np.sort(losses_nats)
    none = chance_none_of(np.arange(len(x) + 1), len(x), trials)
    chance = none[:-1] - none[1:]  # that the k-th is the best of the n
    return float(np.where(chance > 0, x, 0.0) @ chance)


def quantile_best(losses_nats: np.ndarray, trials: int, quantile: float) -> float:
    """Return the loss that the best of n random cells is at or below with this chance."""
    x = np.sort(losses_nats)
    reached = 1 - chance_none_of(np.arange(1, len(x) + 1), len(x), trials)
    return float(x[min(int(np.searchsorted(reached, quantile - 1e-12)), len(x) - 1)])


def trials(table: RunTable) -> list[Row]:
    """Return the expected best loss after n trials of each grid, and the range that 90% of searches end in."""
    rows: list[Row] = []
    for group in table.groups:
        losses = group.mean_P[~np.isnan(group.mean_P)]
        if len(losses) < 2 or not np.isfinite(losses).any():
            continue
        for n in range(1, len(losses) + 1):
            low, high = (quantile_best(losses, n, q) for q in intervals.TAILS)
            rows.append(
                {"setting": group.setting, "arm": group.arm, "batch_size": group.batch_size, "trials": n,
                 "expected_best_loss_nats": expected_best(losses, n), "best_loss_nats_low": low,
                 "best_loss_nats_high": high}
            )  # fmt: skip
    return rows


def share_within(table: RunTable, delta_nats: float) -> list[Row]:
    """Return the share of each grid's cells whose mean loss is within delta of its lowest; diverged cells count."""
    rows: list[Row] = []
    for group in table.groups:
        losses = group.mean_P[~np.isnan(group.mean_P)]
        if not np.isfinite(losses).any():
            continue
        within = int((losses <= losses.min() + delta_nats).sum())
        rows.append(
            {"setting": group.setting, "arm": group.arm, "batch_size": group.batch_size, "delta_nats": delta_nats,
             "cells": len(losses), "cells_within_delta": within, "within_delta_frac": within / len(losses),
             "diverged_frac": float(np.isinf(losses).mean()), "missing_cells": len(group.points) - len(losses)}
        )  # fmt: skip
    return rows
