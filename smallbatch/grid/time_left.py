"""Estimate the remaining time of a sweep from the measured speed of its own cells."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from smallbatch.plan.plan import Plan
from smallbatch.runs.progress import format_secs


@dataclass(frozen=True)
class Work:
    """Part of a cell: completed FLOPs with their seconds, or remaining FLOPs."""

    plan: Plan
    flops: float
    secs: float = 0.0  # wall-clock time, divided by the number of cells that ran in parallel


@dataclass(frozen=True)
class TimeLeft:
    """A range of seconds, and the batch sizes without a measured cell."""

    low_secs: float
    high_secs: float
    unmeasured: tuple[int, ...] = ()


def time_left(done: Sequence[Work], left: Sequence[Work]) -> TimeLeft | None:
    """Return the time of the remaining work; None before anything is measured.

    A cell is assumed to run at the speed of measured cells with the same program. If there are none, the range is from
    the fastest to the slowest measured cells with its batch size, or else with any batch size.
    """
    low = high = 0.0
    unmeasured = set()
    by_program, by_batch_size, all_of_them = _secs_per_flop(done)
    for work in left:
        own = by_program.get(work.plan.program()) or by_batch_size.get(work.plan.first.batch_size) or all_of_them
        if not own:
            return None
        if work.plan.first.batch_size not in by_batch_size:
            unmeasured.add(work.plan.first.batch_size)
        low += work.flops * min(own)
        high += work.flops * max(own)
    return TimeLeft(low, high, tuple(sorted(unmeasured)))


def time_text(time: TimeLeft | None) -> str:
    """Return an estimate in words."""
    if time is None:
        return "unknown time (until a cell has trained)"
    low, high = format_secs(time.low_secs), format_secs(time.high_secs)
    sizes = ", ".join(f"{size:,}" for size in time.unmeasured)
    unless = f" if batch size {sizes} is as fast as the measured ones" if sizes else ""
    return (f"about {low}" if low == high else f"{low} to {high}") + unless


def _secs_per_flop(done: Sequence[Work]) -> tuple[dict, dict, list[float]]:
    """Return the speeds by program, by batch size, and overall; each speed is pooled over the cells of one program."""
    totals: dict = defaultdict(lambda: [0.0, 0.0])
    batch_sizes = {}
    for work in done:
        if work.flops > 0 and work.secs > 0:
            totals[work.plan.program()][0] += work.secs
            totals[work.plan.program()][1] += work.flops
            batch_sizes[work.plan.program()] = work.plan.first.batch_size
    by_program = {program: [secs / flops] for program, (secs, flops) in totals.items()}
    by_batch_size = defaultdict(list)
    for program, speeds in by_program.items():
        by_batch_size[batch_sizes[program]] += speeds
    return by_program, by_batch_size, [speed for speeds in by_program.values() for speed in speeds]
