"""Batch-size schedules: the token counts at which the batch size changes, and the resulting stages of a run."""

import re
from dataclasses import dataclass

from smallbatch import units
from smallbatch.errors import UserError

# Exponent of the ratio of batch sizes that multiplies the learning rate.
LR_RULES = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
MAX_BATCH_SIZE = 2**24
MAX_STEPS = 2**31 - 1  # optimizers count updates in an int32


@dataclass(frozen=True)
class ScheduleStage:
    """A part of a run with a constant batch size."""

    batch_size: int  # sequences per update
    first_step: int  # updates finished before the stage
    last_step: int  # updates finished at its end
    first_tokens: int  # tokens seen before the stage


def stages(batch_size: int, schedule: str | None, context_tokens: int, budget_tokens: int) -> tuple[ScheduleStage, ...]:
    """Return the stages of a run that starts at `batch_size` and changes it by `schedule`.

    The budget is rounded up to whole updates of the last stage; `used_tokens` returns the result.

    Args:
        schedule: TOKENS:SIZE,TOKENS:SIZE,...; after TOKENS tokens, an update has SIZE sequences. None: no change.

    Raises:
        UserError: the schedule is invalid, a stage before a change is not a whole number of updates, or the number of
            updates exceeds int32.
    """
    starts = [(0, batch_size), *_parse(schedule or "")]
    found, step = [], 0
    for (first, size), (end, next_size) in zip(starts, [*starts[1:], (budget_tokens, None)], strict=True):
        if end <= first:
            change = (end, next_size) if next_size else (first, size)
            raise UserError(
                f"train.batch_size_schedule changes the batch size to {change[1]} at {change[0]:,} tokens. Changes "
                f"must be in increasing order and before the end of the budget ({budget_tokens:,}); change the token "
                "counts or train.budget_tokens"
            )
        tokens_per_step = size * context_tokens
        try:
            steps = (units.steps_from_tokens if next_size else units.whole_steps)(end - first, tokens_per_step)
        except UserError as error:
            raise UserError(f"from {first:,} to {end:,} tokens: {error}") from None
        found.append(ScheduleStage(size, step, step + steps, first))
        step += steps
    if step > MAX_STEPS:
        raise UserError(
            f"{budget_tokens:,} tokens are {step:,} updates, and at most {MAX_STEPS:,} are allowed; lower "
            "train.budget_tokens, or raise train.batch_size"
        )
    return tuple(found)


def used_tokens(found: tuple[ScheduleStage, ...], context_tokens: int) -> int:
    """Return the training tokens of all stages: the budget, rounded up to whole updates."""
    last = found[-1]
    return last.first_tokens + (last.last_step - last.first_step) * last.batch_size * context_tokens


def _parse(schedule: str) -> list[tuple[int, int]]:
    """Return the (tokens, batch size) pairs of a schedule."""
    parts = [part.strip() for part in schedule.split(",")] if schedule else []
    for part in parts:
        if not re.fullmatch(r"[1-9][0-9_]{,19}:[1-9][0-9_]{,9}", part):
            raise UserError(f"{part[:60]!r} is not TOKENS:SIZE; write, for example, 262144:8,524288:16")
        if int(part.partition(":")[2]) > MAX_BATCH_SIZE:
            raise UserError(f"{part!r} has a batch size above the maximum, {MAX_BATCH_SIZE:,}; choose a smaller one")
    return [(int(tokens), int(size)) for tokens, size in (part.split(":") for part in parts)]
