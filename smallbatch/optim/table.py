"""The table of optimizers: what config checks, the plan, reports and the docs need to know about each. No JAX."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Optimizer:
    """One optimizer. The update is p -= lr (u + wd p)."""

    module: str  # file of this folder that defines the function; it has the name of the entry
    update: str  # u, for the docs; g: gradient, t: number of the update
    state: str  # what the state holds beside the counter, for the docs
    hyperparams: tuple[str, ...] = ()  # keys that it reads, beside those that every optimizer reads
    # (b1 stands for b1 or t1_tokens, b2 for b2 or t2_tokens.)
    default_peak_lr: float | None = None  # None: optimizer.peak_lr must be set
    bias_corrected: bool = False  # whether it divides its averages by 1 - b^t
    sqrt_rule: bool = False  # whether the sqrt transfer rule holds for it (Malladi et al. 2022: RMSprop and Adam)
    schedule_free: bool = False  # whether it is evaluated at an average of its iterates, with a constant schedule
    params_in_state: int | None = 0  # float32 arrays of the size of the parameters; None: see `state`


OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Optimizer(
        "_adam",
        update="mu/(1-b1^t) / (sqrt(nu/(1-b2^t)) + eps), with `weight_decay`: AdamW",
        state="mu, nu: 8 bytes per parameter",
        hyperparams=("b1", "b2", "eps"),
        default_peak_lr=0.003,
        bias_corrected=True,
        sqrt_rule=True,
        params_in_state=2,
    ),
    "sgd": Optimizer("_sgd", update="g", state="none"),
    "sign_sgd": Optimizer("_sgd", update="sign(g)", state="none"),
    "momentum": Optimizer(
        "_momentum",
        update="mu/(1-b1^t), the bias-corrected average of g; `nesterov`: one update ahead",
        state="mu: 4 bytes per parameter",
        hyperparams=("b1", "nesterov"),
        bias_corrected=True,
        params_in_state=1,
    ),
    "heavy_ball": Optimizer(
        "_momentum",
        update="mu, where mu <- b1 mu + g (momentum of PyTorch and `optax.trace`); `nesterov`: g + b1 mu",
        state="mu: 4 bytes per parameter",
        hyperparams=("b1", "nesterov"),
        params_in_state=1,
    ),
    "signum": Optimizer(
        "_momentum",
        update="sign(mu), mu the average of g",
        state="mu: 4 bytes per parameter",
        hyperparams=("b1",),
        params_in_state=1,
    ),
    "lion": Optimizer(
        "_momentum",
        update="sign(b1 mu + (1-b1) g), then mu <- b2 mu + (1-b2) g",
        state="mu: 4 bytes per parameter",
        hyperparams=("b1", "b2"),
        params_in_state=1,
    ),
    "muon": Optimizer(
        "_muon",
        update="sqrt(max(1, out/in)) orthogonal(mu/(1-b1^t)) for matrices (`muon_matrices`: whole, or per head); "
        "Adam at `embed_lr` for embeddings and output",
        state="mu: 4 bytes per parameter; nu: 4 more where Adam is used",
        hyperparams=("b1", "b2", "eps", "nesterov", "embed_lr", "muon_matrices"),
        bias_corrected=True,
        params_in_state=None,
    ),
    "adafactor": Optimizer(
        "_adafactor",
        update="g / sqrt(row x column averages of g^2), clipped to RMS 1, times rms(p)",
        state="4 bytes per row and 4 per column of each matrix",
        hyperparams=("b2",),
        bias_corrected=True,
        sqrt_rule=True,
        params_in_state=None,
    ),
    "adafactor_power": Optimizer(
        "_adafactor",
        update="as `adafactor`, with 1 - b2 = t^-`decay_exponent` as published",
        state="4 bytes per row and 4 per column of each matrix",
        hyperparams=("decay_exponent",),
        bias_corrected=True,
        params_in_state=None,
    ),
    "schedule_free_sgd": Optimizer(
        "_schedule_free",
        update="g at y = `interpolation` x + (1 - `interpolation`) z; evaluated at x, the average of the iterates z",
        state="z: 4 bytes per parameter",
        hyperparams=("interpolation",),
        schedule_free=True,
        params_in_state=1,
    ),
    "schedule_free_adamw": Optimizer(
        "_schedule_free",
        update="as `schedule_free_sgd`, with g / (sqrt(nu/(1-b2^t)) + eps)",
        state="z, nu: 8 bytes per parameter",
        hyperparams=("b2", "eps", "interpolation"),
        bias_corrected=True,
        sqrt_rule=True,
        schedule_free=True,
        params_in_state=2,
    ),
}


def optimizer_function(name: str) -> Any:
    """Import and return the function that builds the optimizer `name`."""
    return getattr(import_module(f"smallbatch.optim.{OPTIMIZERS[name].module}"), name)


def markdown_table() -> str:
    """Return the table of all optimizers for the docs."""
    lines = ["| `optimizer.name` | u in p -= lr (u + wd p) | keys it reads | state |", "|---|---|---|---|"]
    for name, optimizer in OPTIMIZERS.items():
        keys = ", ".join(f"`{key}`" for key in optimizer.hyperparams)
        lines.append(f"| `{name}` | {optimizer.update} | {keys} | {optimizer.state} |")
    return "\n".join(lines) + "\n"
