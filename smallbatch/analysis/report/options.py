"""Define the options of a report. --help imports this file, so it imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Options of a report, which are also flags of the command."""

    delta_nats: float = 0.02  # a loss at most this much above the lowest counts as good
    target_loss_nats: float | None = None  # for costs and critical batch sizes; None: one that many grids reach
    overhead_frac: float = 0.2  # in the definition of the critical batch size
    reference_batch_size: float | None = None  # where perfect scaling starts; None: the smallest


DEFAULTS = Options()
