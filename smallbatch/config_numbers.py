"""The largest numbers that keys take, and whether float32 can hold them.

A whole number without an upper bound hangs, aborts or overflows before any other check can refuse it. A float beyond
float32 is checked in float64 and used as infinity or 0.
"""

import math

from smallbatch.phases import MAX_BATCH_SIZE
from smallbatch.units import float32_problem

LARGEST = {
    "data.tokens_eod_id": 2**32 - 1,
    "model.width": 2**17,
    "model.layers": 1024,
    "model.head_width": 2**16,
    "model.ffn_width": 2**20,
    "model.context_tokens": 2**22,
    **dict.fromkeys(("optimizer.tuned_at_batch_size", "train.batch_size", "train.microbatch_size"), MAX_BATCH_SIZE),
    "train.steps_per_dispatch": 2**16,
    "train.sample_tokens": 2**22,
    **dict.fromkeys(("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence"), 2**20),
    "mesh.cpu_devices": 256,
}
LARGEST_WHOLE_NUMBER = 2**53  # of every other key: float64 holds all whole numbers up to it
# Floats of these sections reach the compiled program. Numbers of tokens do not: what follows from them does.
FLOAT32_SECTIONS = ("optimizer.", "model.")


def problem(key: str, value: float, wanted: type) -> str | None:
    """Return why a number is too large or too small for a key, or None."""
    if wanted is int:
        largest = LARGEST.get(key, LARGEST_WHOLE_NUMBER)
        return f"{key} is {shown(value)}; it must be at most {largest:,}" if value > largest else None
    if not _is_finite(value):
        return f"{key} is {shown(value)}; it takes a finite number"
    if not key.startswith(FLOAT32_SECTIONS) or key.endswith("_tokens"):
        return None
    words = float32_problem(value)
    return words and f"{key} is {value!r}, which is {words}; choose a number that float32 can hold"


def shown(value: float) -> str:
    """Return a number in text; one of many digits by its size, since Python refuses to print thousands of digits."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"above 10^{(value.bit_length() - 1) * 3 // 10}"
    return str(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float64
        return False
