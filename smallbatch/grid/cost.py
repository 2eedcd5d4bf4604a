"""What a grid will cost, before its first cell runs: programs, tokens, FLOPs, time on this machine, disk."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from smallbatch import plan as plans
from smallbatch.grid.cells import Cell
from smallbatch.grid.directory import State
from smallbatch.progress import format_bytes, format_count, format_secs
from smallbatch.specs import ProgramSpec

# A worker trains at this share of the matrix-product speed of its core, as numpy measures it (seen: 0.3 to 0.5).
EFFICIENCY = 0.4
START_SECS = 3.0  # of a cell: restoring, compiling its share, validation, files
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
    secs: float | None  # None: unknown
    disk_bytes: float
    measured: bool  # whether the time comes from cells that have ended here, or from a matrix product


def programs_of(plan: plans.Plan) -> tuple[ProgramSpec, ...]:
    """Return what a run compiles: one program for each batch size that it goes through."""
    return tuple(phase.program for phase in (plan, *plan.later))


def state_bytes(plan: plans.Plan) -> int:
    """Return what a checkpoint takes: weights, at most two averages of the optimizer, and what is asked for besides."""
    spec = plan.optimizer
    kept_for_diagnostics = {"off": 0, "parts": 1, "successive": 2}[spec.diagnostics]
    return 4 * plan.params * (3 + spec.weight_average + kept_for_diagnostics)


def files_bytes(plan: plans.Plan) -> int:
    """Return what a cell leaves behind beside its checkpoints."""
    record_bytes = RECORD_BYTES if plan.optimizer.diagnostics == "off" else RECORD_BYTES_WITH_DIAGNOSTICS
    records = 0
    for phase in (plan, *plan.later):
        steps = phase.last_step - phase.first_step
        records += steps // phase.log_every_steps + steps // (phase.validate_every_steps or steps)
    return FILES_BYTES + records * record_bytes


def cost(
    cells: list[Cell],
    plans_of: dict[str, plans.Plan],
    states: dict[str, State],
    *,
    at_once: int,
    workers: int,
    guess: bool,
    keep_checkpoints: bool,
) -> Cost:
    """Return the cost of the cells that are missing, from the speed of those that have a result if there are any.

    at_once: cells under way together. workers: by how much that divides the time of a cell. guess: whether this
    machine's matrix products tell anything where no cell has ended.
    """
    left = [plans_of[cell.id] for cell in cells if states[cell.id].status == "missing"]
    done = [state for state in states.values() if state.flops and state.secs]
    flops, secs = sum(plan.flops for plan in left), None
    if done:
        secs = flops / (sum(s.flops or 0 for s in done) / sum(s.secs or 0 for s in done)) / workers
    elif guess:
        secs = flops / (EFFICIENCY * matmul_flops_per_sec()) + START_SECS * len(left) / workers
    if keep_checkpoints:
        saved_bytes = sum(state_bytes(plans_of[cell.id]) for cell in cells)
    else:
        saved_bytes = sum(sorted(map(state_bytes, left))[-at_once:])  # of those under way: the largest, at worst
    return Cost(
        cells=len(left),
        programs=len({program for plan in left for program in programs_of(plan)}),
        tokens=sum(plan.budget_tokens for plan in left),
        flops=flops,
        secs=secs,
        disk_bytes=sum(files_bytes(plans_of[cell.id]) for cell in cells) + CHECKPOINTS * saved_bytes,
        measured=bool(done),
    )


def cost_text(cost: Cost) -> str:
    """Return the cost in a line."""
    source = "from cells that ended here" if cost.measured else "a guess from a matrix product, to a factor of 2"
    takes = (
        "a time unknown until a cell has ended" if cost.secs is None else f"about {format_secs(cost.secs)} ({source})"
    )
    return (
        f"{cost.cells:,} cells to run, {cost.programs} compiled program{'s' * (cost.programs != 1)}, "
        f"{format_count(cost.tokens)} tokens, {cost.flops:.3g} FLOPs, {takes}, "
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
    """Return a line for each different warning of the plans, with how many cells have it."""
    counts = Counter(words for plan in cell_plans for words in plan.warnings)
    return [f"warning ({n:,} cell{'s' * (n > 1)}): {words}" for words, n in counts.items()]


def matmul_flops_per_sec(size: int = 1024, secs: float = 0.2) -> float:
    """Return the speed of float32 matrix products on all cores, the best of those that fit into `secs`."""
    a = np.ones((size, size), np.float32)
    best, stop = 0.0, time.perf_counter() + secs
    while time.perf_counter() < stop:
        start = time.perf_counter()
        np.matmul(a, a)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
