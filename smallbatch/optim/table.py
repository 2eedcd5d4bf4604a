"""The table of optimizers, used by config checks, plans, reports and the docs. It does not import JAX."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Optimizer:
    """One optimizer. Its key in OPTIMIZERS is the name of its function in `smallbatch.optim`."""

    # Keys of the optimizer section that it reads in addition to the keys common to all optimizers. b1 and b2 stand for
    # running averages, set by a decay rate per step (b1) or by a half-life in tokens (t1_tokens).
    hyperparams: tuple[str, ...] = ()
    state_bytes: int | str = 0  # bytes per parameter, excluding scalars; text if it depends on the shape
    default_peak_lr: float | None = None  # None: optimizer.peak_lr must be set
    bias_corrected: bool = False  # whether averages are divided by 1 - b^t
    sqrt_rule: bool = False  # whether the sqrt transfer rule holds (Malladi et al. 2022 derive it for RMSprop and Adam)
    schedule_free: bool = False  # whether it is evaluated at an average of its iterates


FACTORED = "4 per row and 4 per column of each matrix"

OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Optimizer(("b1", "b2", "eps"), 8, default_peak_lr=0.003, bias_corrected=True, sqrt_rule=True),
    "sgd": Optimizer(),
    "sign_sgd": Optimizer(),
    "momentum": Optimizer(("b1", "nesterov"), 4, bias_corrected=True),
    "heavy_ball": Optimizer(("b1", "nesterov"), 4),
    "signum": Optimizer(("b1",), 4),
    "lion": Optimizer(("b1", "b2"), 4),
    "muon": Optimizer(
        ("b1", "b2", "eps", "nesterov", "embed_lr", "muon_matrices"),
        "4 for matrices, 8 for embeddings and output",
        bias_corrected=True,
    ),
    "adafactor": Optimizer(("b2",), FACTORED, bias_corrected=True, sqrt_rule=True),
    "adafactor_power": Optimizer(("decay_exponent",), FACTORED),
    "schedule_free_sgd": Optimizer(("interpolation",), 4, schedule_free=True),
    "schedule_free_adamw": Optimizer(
        ("b2", "eps", "interpolation"), 8, bias_corrected=True, sqrt_rule=True, schedule_free=True
    ),
}


def markdown_table() -> str:
    """Return the table of optimizers for the docs, with the docstring of each function."""
    from smallbatch import optim

    lines = ["| `optimizer.name` | update | keys | state, bytes per parameter |", "|---|---|---|---|"]
    for name, optimizer in OPTIMIZERS.items():
        docstring = getattr(optim, name).__doc__.partition("Args:")[0]
        update = " ".join(docstring.split()).removeprefix("Return ")
        keys = ", ".join(f"`{key}`" for key in optimizer.hyperparams)
        lines.append(f"| `{name}` | {update} | {keys} | {optimizer.state_bytes} |")
    return "\n".join(lines) + "\n"
