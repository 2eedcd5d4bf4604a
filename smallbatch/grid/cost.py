"""Estimate the cost of a grid: compiled programs, tokens, FLOPs, checkpoint space, and remaining time."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from smallbatch.grid.sweep_dir import State
from smallbatch.grid.sweep_plan import SweepPlan
from smallbatch.plan.plan import Plan
from smallbatch.runs.progress import format_bytes, format_count, format_secs

CHECKPOINTS = 2  # kept per cell
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Work:
    """The completed FLOPs of a cell and the seconds they took, or its remaining FLOPs."""

    plan: Plan
    flops: float
    secs: float = 0.0  # wall-clock time, divided by the number of cells that ran in parallel


def time_left_text(done: Iterable[Work], left: Iterable[Work]) -> str:
    """Return an estimate of the time of the remaining work.

    A cell is assumed to run at the speed of measured cells with the same program. If there are none, the range is from
    the fastest to the slowest measured program with its batch size, or else with any batch size.
    """
    totals: defaultdict = defaultdict(lambda: [0.0, 0.0])
    for work in done:
        if work.flops > 0 and work.secs > 0:
            totals[work.plan.first.batch_size, work.plan.program()][0] += work.secs
            totals[work.plan.first.batch_size, work.plan.program()][1] += work.flops
    secs_per_flop = {key: secs / flops for key, (secs, flops) in totals.items()}
    low_secs = high_secs = 0.0
    unmeasured = set()  # batch sizes
    for work in left:
        size = work.plan.first.batch_size
        same_size = [speed for key, speed in secs_per_flop.items() if key[0] == size]
        same_program = secs_per_flop.get((size, work.plan.program()))
        speeds = [same_program] if same_program else same_size or [*secs_per_flop.values()]
        if not speeds:
            return "unknown time (until a cell has trained)"
        if not same_size:
            unmeasured.add(size)
        low_secs += work.flops * min(speeds)
        high_secs += work.flops * max(speeds)
    low, high = format_secs(low_secs), format_secs(high_secs)
    sizes = ", ".join(f"{size:,}" for size in sorted(unmeasured))
    unless = f" if batch size {sizes} is as fast as the measured ones" if sizes else ""
    return (f"about {low}" if low == high else f"{low} to {high}") + unless


def checkpoints_bytes(plans: Iterable[Plan], at_once: int | None) -> int:
    """Return the size of the checkpoints of the largest `at_once` cells; None: of all cells."""
    sizes = []
    for plan in plans:
        diagnostics = {"off": 0, "parts": 1, "successive": 2}[plan.optimizer.diagnostics]
        copies = 3 + plan.optimizer.weight_average + diagnostics  # weights, up to two optimizer moments, ...
        sizes.append(CHECKPOINTS * FLOAT32_BYTES * copies * plan.params)
    return sum(sorted(sizes, reverse=True)[:at_once])


def cost_text(sweep: SweepPlan, states: dict[str, State], at_once: int, keep_checkpoints: bool) -> str:
    """Return the cost of the chosen cells without a result. The time is estimated from the cells with a result.

    at_once: cells that run in parallel.
    """
    chosen = {cell.id: sweep.plans[cell.id] for cell in sweep.chosen}
    left = [plan for cell_id, plan in chosen.items() if states[cell_id].status == "missing"]
    done = [
        Work(chosen[cell_id], state.flops, state.secs / sweep.workers)
        for cell_id, state in states.items()
        if state.flops and state.secs
    ]
    time = time_left_text(done, [Work(plan, plan.flops) for plan in left])
    programs = len({plan.program(stage) for plan in left for stage in plan.stages})
    disk = checkpoints_bytes(chosen.values(), None) if keep_checkpoints else checkpoints_bytes(left, at_once)
    return (
        f"{len(left):,} cells to run, {programs} compiled program{'s' * (programs != 1)}, "
        f"{format_count(sum(plan.budget_tokens for plan in left))} tokens, {sum(plan.flops for plan in left):.3g} "
        f"FLOPs, {time}{' (measured on finished cells)' if done and left else ''}, "
        f"{format_bytes(disk)} of checkpoints"
    )


def epoch_lines(plans: Iterable[Plan], corpus_tokens: dict) -> list[str]:
    """Return a line for each budget that exceeds its corpus. corpus_tokens: {DataSpec: training tokens}."""
    epochs = Counter(
        round(plan.budget_tokens / corpus_tokens[plan.data], 2)
        for plan in plans
        if plan.budget_tokens > corpus_tokens[plan.data]
    )
    return [f"{count} cells train {n:g} epochs: sequences repeat, reshuffled" for n, count in sorted(epochs.items())]


def warning_lines(plans: Iterable[Plan]) -> list[str]:
    """Return a line for each distinct warning of the plans, with its number of cells."""
    counts = Counter(warning for plan in plans for warning in plan.warnings)
    return [f"warning ({count:,} cell{'s' * (count > 1)}): {warning}" for warning, count in counts.items()]
