"""A batch that grows: from which token counts on, to which sizes, and what that does to the learning rate."""

import re
from dataclasses import dataclass

from smallbatch import units
from smallbatch.errors import UserError

# Exponent of the ratio of batch sizes that multiplies the learning rate.
LR_RULES = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


@dataclass(frozen=True)
class Phase:
    """A part of a run in which the batch size stays."""

    batch_size: int  # sequences an update
    first_step: int  # updates finished before it
    last_step: int  # and after it
    first_tokens: int


def phases(batch_size: int, schedule: str | None, context_tokens: int, budget_tokens: int) -> tuple[Phase, ...]:
    """Return the phases of a run that starts at `batch_size` and changes by `schedule`.

    Args:
        schedule: TOKENS:SIZE,TOKENS:SIZE,...; from that many tokens on, that many sequences an update. None: no change.

    Raises:
        UserError: the schedule cannot be read, or a phase is not a whole number of updates.
    """
    starts = [(0, batch_size), *_parsed(schedule or "")]
    found, step = [], 0
    for (first, size), (last, next_size) in zip(starts, [*starts[1:], (budget_tokens, 0)], strict=True):
        if last <= first:
            raise UserError(
                f"the batch changes to {next_size or size} at {(last if next_size else first):,} tokens, which is not "
                f"after {first:,} and before the end of the budget, {budget_tokens:,}"
            )
        try:
            steps = units.steps_from_tokens(last - first, size * context_tokens)
        except UserError as error:
            raise error if schedule is None else UserError(f"from {first:,} to {last:,} tokens: {error}") from None
        found.append(Phase(size, step, step + steps, first))
        step += steps
    return tuple(found)


def _parsed(schedule: str) -> list[tuple[int, int]]:
    parts = [part.strip() for part in schedule.split(",")] if schedule else []
    for part in parts:
        if not re.fullmatch(r"[1-9][0-9_]*:[1-9][0-9_]*", part):
            raise UserError(f"{part!r} is not TOKENS:SIZE, as in 262144:8,524288:16")
    return [(int(tokens), int(size)) for tokens, size in (part.split(":") for part in parts)]
