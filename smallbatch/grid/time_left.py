"""Estimate the time that a sweep still takes, from the speed of its own cells and from nothing else."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from smallbatch.plan import Plan
from smallbatch.progress import format_secs


@dataclass(frozen=True)
class Work:
    """A part of a cell: FLOPs that are done, with the seconds they took, or FLOPs that are left."""

    plan: Plan
    flops: float
    secs: float = 0.0  # of the whole sweep: of cells that run side by side, each has its share


@dataclass(frozen=True)
class TimeLeft:
    """The least and the most seconds, and the batch sizes that none of the measured cells has."""

    low_secs: float
    high_secs: float
    unmeasured: tuple[int, ...] = ()


def time_left(done: Sequence[Work], left: Sequence[Work]) -> TimeLeft | None:
    """Return how long the work left takes; None before anything is measured.

    A cell runs at the speed of cells with the same program. If none of those is measured, the range is that of the
    slowest and the fastest measured cells of its batch size, or else of all batch sizes.
    """
    low = high = 0.0
    unmeasured = set()
    by_program, by_batch_size, all_of_them = _secs_per_flop(done)
    for work in left:
        own = by_program.get(work.plan.program) or by_batch_size.get(work.plan.batch_size) or all_of_them
        if not own:
            return None
        if work.plan.batch_size not in by_batch_size:
            unmeasured.add(work.plan.batch_size)
        low += work.flops * min(own)
        high += work.flops * max(own)
    return TimeLeft(low, high, tuple(sorted(unmeasured)))


def time_text(time: TimeLeft | None) -> str:
    """Return an estimate in words."""
    if time is None:
        return "a time not known before a cell has trained"
    low, high = format_secs(time.low_secs), format_secs(time.high_secs)
    sizes = ", ".join(f"{size:,}" for size in time.unmeasured)
    unless = f" if batch size {sizes} runs as fast as those measured" if sizes else ""
    return (f"about {low}" if low == high else f"{low} to {high}") + unless


def _secs_per_flop(done: Sequence[Work]) -> tuple[dict, dict, list[float]]:
    """Return the speeds by program, by batch size and of all; each is of all cells with one program together."""
    totals: dict = defaultdict(lambda: [0.0, 0.0])
    batch_sizes = {}
    for work in done:
        if work.flops > 0 and work.secs > 0:
            totals[work.plan.program][0] += work.secs
            totals[work.plan.program][1] += work.flops
            batch_sizes[work.plan.program] = work.plan.batch_size
    by_program = {program: [secs / flops] for program, (secs, flops) in totals.items()}
    by_batch_size = defaultdict(list)
    for program, speeds in by_program.items():
        by_batch_size[batch_sizes[program]] += speeds
    return by_program, by_batch_size, [speed for speeds in by_program.values() for speed in speeds]
