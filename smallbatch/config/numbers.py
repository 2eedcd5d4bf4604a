"""Check that the number of a key is below its upper bound and fits float32.

An integer without an upper bound can hang, abort or overflow before any other check. A float beyond the range of
float32 would pass the checks in float64 and then be used as infinity or 0.
"""

import math

from smallbatch.config.batch_schedule import MAX_BATCH_SIZE
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
LARGEST_WHOLE_NUMBER = 2**53  # of every other key: float64 is exact up to it
# Floats of these sections are inputs of the compiled program. Numbers of tokens are not: values derived from them are.
FLOAT32_SECTIONS = ("optimizer.", "model.")


def problem(key: str, value: float, wanted: type) -> str | None:
    """Return the reason why a number is out of range for a key, or None."""
    if wanted is int:
        largest = LARGEST.get(key, LARGEST_WHOLE_NUMBER)
        return f"{key} is {shown(value)}; it must be at most {largest:,}" if value > largest else None
    if not _is_finite(value):
        return f"{key} is {shown(value)}; it must be a finite number"
    if not key.startswith(FLOAT32_SECTIONS) or key.endswith("_tokens"):
        return None
    words = float32_problem(value)
    return words and f"{key} is {value!r}, which is {words}; choose a number in the range of float32"


def shown(value: float) -> str:
    """Return a number as text; a huge one as a power of 10, since str() raises ValueError above 4,300 digits."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"above 10^{(value.bit_length() - 1) * 3 // 10}"
    return str(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False
