"""Convert between tokens, steps, half-lives and decay rates, in float64.

In a running average `avg += (1 - b) * (x - avg)`, the weight of a value halves every `half_life_steps` updates.
Marek et al. 2025 (arXiv 2507.07101, section 2) keep this half-life fixed in tokens across batch sizes:
b = 2^(-tokens_per_step / half_life_tokens).

Decay rates are stored as one_minus_b = 1 - b, because b is close to 1: with a half-life of 10M tokens and 16 tokens
per step, rounding b to float32 changes 1 - b by 2%.
"""

import math

from smallbatch.errors import UserError

LN2 = math.log(2.0)


def one_minus_b_from_half_life(half_life_tokens: float, tokens_per_step: float) -> float:
    """Return 1 - b in (0, 1) for a half-life in tokens: -expm1(-ln2 * tokens_per_step / half_life_tokens)."""
    if not (half_life_tokens > 0 and math.isfinite(half_life_tokens)):
        raise UserError(f"the half-life is {half_life_tokens!r} tokens, but must be positive and finite")
    if not (tokens_per_step > 0 and math.isfinite(tokens_per_step)):
        raise UserError(f"the tokens per step are {tokens_per_step!r}, but must be positive and finite")
    return -math.expm1(-LN2 * tokens_per_step / half_life_tokens)


def half_life_from_one_minus_b(one_minus_b: float, tokens_per_step: float) -> float:
    """Return the half-life in tokens of a per-step decay b = 1 - one_minus_b; 0 for b = 0."""
    if not 0 < one_minus_b <= 1:
        raise UserError(f"1 - b is {one_minus_b!r}, but must be in (0, 1], since a decay rate b is in [0, 1)")
    if one_minus_b == 1:
        return 0.0
    return -LN2 * tokens_per_step / math.log1p(-one_minus_b)


def steps_from_tokens(budget_tokens: int, tokens_per_step: int) -> int:
    """Return the number of optimizer steps in a token budget. Raises UserError if it is not a whole number."""
    steps, rest = divmod(budget_tokens, tokens_per_step)
    if rest or steps < 1:
        lower = max(steps, 1) * tokens_per_step
        raise UserError(
            f"a budget of {budget_tokens:,} tokens is not a whole number of steps of {tokens_per_step:,} tokens "
            f"(batch size x context); use {lower:,} or {lower + tokens_per_step:,}"
        )
    return steps


def whole_steps(budget_tokens: int, tokens_per_step: int) -> int:
    """Return a token budget in optimizer steps, rounded up."""
    return -(-budget_tokens // tokens_per_step)


FLOAT32_MAX = (2 - 2**-23) * 2.0**127
FLOAT32_MIN = 2.0**-126  # the smallest normal number: XLA may flush smaller ones to 0


def float32_problem(value: float) -> str | None:
    """Return the reason why a finite number would become infinite or 0 in float32, or None."""
    if abs(value) > FLOAT32_MAX:
        return f"above the largest float32 number, {FLOAT32_MAX:.2e}"
    if 0 < abs(value) < FLOAT32_MIN:
        return f"below the smallest float32 number, {FLOAT32_MIN:.2e}, and would become 0"
    return None


def bits_per_byte(nats: float, byte_count: int) -> float:
    """Return bits per byte of text from the summed loss in nats over all tokens of that text.

    `nats` includes the loss of the end-of-document tokens, which decode to no bytes. Definitions that omit this loss
    give values that are 3 to 4% lower on short documents.
    """
    return nats / (LN2 * byte_count)
