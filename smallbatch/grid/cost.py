"""Estimate the cost of a grid: programs, tokens, FLOPs, disk space, and time once cells have finished."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from smallbatch.grid.cells import Cell
from smallbatch.grid.sweep_dir import State
from smallbatch.grid.time_left import TimeLeft, Work, time_left, time_text
from smallbatch.plan import plan as plans
from smallbatch.runs.progress import format_bytes, format_count
from smallbatch.specs import ProgramSpec

FILES_BYTES = 40_000  # a cell's config, plan, result, log and tokenizer, in whole blocks
RECORD_BYTES, RECORD_BYTES_WITH_DIAGNOSTICS = 200, 500
CHECKPOINTS = 2  # that a cell keeps


@dataclass(frozen=True)
class Cost:
    """The cost of the cells that are left to run."""

    cells: int
    programs: int
    tokens: int
    flops: float
    time: TimeLeft | None  # None before a cell has finished
    disk_bytes: float


def programs_of(plan: plans.Plan) -> tuple[ProgramSpec, ...]:
    """Return what a run compiles: one program for each batch size that it goes through."""
    return tuple(plan.program(stage) for stage in plan.stages)


def state_bytes(plan: plans.Plan) -> int:
    """Return what a checkpoint takes: weights, at most two averages of the optimizer, and what is asked for besides."""
    spec = plan.optimizer
    kept_for_diagnostics = {"off": 0, "parts": 1, "successive": 2}[spec.diagnostics]
    return 4 * plan.params * (3 + spec.weight_average + kept_for_diagnostics)


def files_bytes(plan: plans.Plan) -> int:
    """Return what a cell leaves behind beside its checkpoints."""
    record_bytes = RECORD_BYTES if plan.optimizer.diagnostics == "off" else RECORD_BYTES_WITH_DIAGNOSTICS
    records = 0
    for stage in plan.stages:
        steps = stage.last_step - stage.first_step
        records += steps // stage.log_every_steps + steps // (stage.validate_every_steps or steps)
    return FILES_BYTES + records * record_bytes


def cost(
    cells: list[Cell],
    plans_of: dict[str, plans.Plan],
    states: dict[str, State],
    *,
    at_once: int,
    workers: int,
    keep_checkpoints: bool,
) -> Cost:
    """Return the cost of the cells without a result. The time is estimated from the cells with a result.

    at_once: cells that run in parallel. workers: factor by which this divides the time of a cell.
    """
    left = [plans_of[cell.id] for cell in cells if states[cell.id].status == "missing"]
    done = [
        Work(plans_of[cell_id], state.flops, state.secs / workers)
        for cell_id, state in states.items()
        if state.flops and state.secs
    ]
    if keep_checkpoints:
        saved_bytes = sum(state_bytes(plans_of[cell.id]) for cell in cells)
    else:
        saved_bytes = sum(sorted(map(state_bytes, left))[-at_once:])  # of those under way: the largest, at worst
    return Cost(
        cells=len(left),
        programs=len({program for plan in left for program in programs_of(plan)}),
        tokens=sum(plan.budget_tokens for plan in left),
        flops=sum(plan.flops for plan in left),
        time=time_left(done, [Work(plan, plan.flops) for plan in left]),
        disk_bytes=sum(files_bytes(plans_of[cell.id]) for cell in cells) + CHECKPOINTS * saved_bytes,
    )


def cost_text(cost: Cost) -> str:
    """Return the cost in a line."""
    source = " (measured on finished cells)" if cost.time and cost.cells else ""
    return (
        f"{cost.cells:,} cells to run, {cost.programs} compiled program{'s' * (cost.programs != 1)}, "
        f"{format_count(cost.tokens)} tokens, {cost.flops:.3g} FLOPs, {time_text(cost.time)}{source}, "
        f"{format_bytes(cost.disk_bytes)} on disk"
    )


def beyond_corpus(cells: list[Cell], plans_of: dict[str, plans.Plan], corpus_tokens: dict) -> list[str]:
    """Say which budgets repeat their corpus. corpus_tokens: {DataSpec: training tokens}."""
    epochs: Counter[float] = Counter()
    for cell in cells:
        plan = plans_of[cell.id]
        if plan.budget_tokens > corpus_tokens[plan.data]:
            epochs[round(plan.budget_tokens / corpus_tokens[plan.data], 2)] += 1
    return [f"{n} cells train {e:g} epochs: sequences repeat, reshuffled" for e, n in sorted(epochs.items())]


def warning_lines(cell_plans: Iterable[plans.Plan]) -> list[str]:
    """Return one line per distinct warning of the plans, with the number of cells that have it."""
    counts = Counter(words for plan in cell_plans for words in plan.warnings)
    return [f"warning ({n:,} cell{'s' * (n > 1)}): {words}" for words, n in counts.items()]
