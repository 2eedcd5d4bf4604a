"""Compute the gap between two arms at each batch size: SGD minus Adam, a fixed b2 minus a fixed half-life.

A gap is the difference of two losses at the same batch size and the same FLOPs, with its own interval.
"""

from itertools import combinations, pairwise

from smallbatch.analysis.read.run_table import RunTable
from smallbatch.analysis.report.tables import Row
from smallbatch.analysis.stats import intervals
from smallbatch.analysis.stats.equal_flops import bounds, choose


def gaps(table: RunTable) -> list[Row]:
    """Return loss(arm) - loss(other) of the chosen cells, for every pair of arms that share a batch size.

    The interval is Welch's, of two independent means. Runs that share their seeds share noise, so that it is rather too
    wide than too narrow.
    """
    rows: list[Row] = []
    for setting in table.settings:
        chosen = {(g.arm, g.batch_size): choice for g in table.groups if g.setting == setting and (choice := choose(g))}
        for other, arm in combinations([a for a in table.arms if any(a == key[0] for key in chosen)], 2):
            for size in sorted({size for _, size in chosen}):
                a, b = chosen.get((arm, size)), chosen.get((other, size))
                if a is None or b is None:
                    continue
                gap = a.loss_nats - b.loss_nats
                interval = intervals.difference(gap, [(a.seeds, a.noise), (b.seeds, b.noise)])
                rows.append(
                    {"setting": setting, "arm": arm, "minus_arm": other, "batch_size": size, "gap_nats": gap,
                     **bounds("gap_nats", interval), "arm_loss_nats": a.loss_nats, "minus_arm_loss_nats": b.loss_nats}
                )  # fmt: skip
    return rows


def between(rows: list[Row], arm: str, other: str) -> list[Row]:
    """Return the rows of one pair, in whichever order it was kept, as arm minus other."""
    found = [row for row in rows if (row["arm"], row["minus_arm"]) == (arm, other)]
    for row in rows:
        if (row["arm"], row["minus_arm"]) == (other, arm):
            low, high = row["gap_nats_low"], row["gap_nats_high"]
            found.append(
                {**row, "arm": arm, "minus_arm": other, "gap_nats": -row["gap_nats"],
                 "gap_nats_low": None if high is None else -high, "gap_nats_high": None if low is None else -low}
            )  # fmt: skip
    return found


def sign_changes(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Return the pairs of neighbouring batch sizes between which the gap changes sign; gaps of zero are skipped."""
    signed = sorted((row for row in rows if row["gap_nats"]), key=lambda row: row["batch_size"])
    return [(a, b) for a, b in pairwise(signed) if (a["gap_nats"] > 0) != (b["gap_nats"] > 0)]


def reference_arm(table: RunTable) -> str | None:
    """Return the arm that others are compared with: the first Adam, or else the arm of the lowest loss."""
    losses = {}
    for group in table.groups:
        if choice := choose(group):
            losses[group.arm] = min(choice.loss_nats, losses.get(group.arm, float("inf")))
    adams = [arm for arm in losses if arm.lower().startswith("adam")]
    return min(adams or losses, key=losses.__getitem__, default=None)
