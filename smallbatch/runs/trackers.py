"""Log the records of metrics.jsonl to TensorBoard or Weights & Biases, with tokens on the x-axis."""

import math
import time
from pathlib import Path
from typing import Any, Protocol

from smallbatch.errors import UserError


class Tracker(Protocol):
    def write(self, record: dict[str, Any]) -> None:
        """Log one record of metrics.jsonl."""
        ...

    def close(self) -> None: ...


def open_trackers(
    workdir: str | Path,
    *,
    tensorboard: bool,
    wandb: str,
    wandb_project: str,
    run_id: str,
    config: dict[str, Any],
    resumed_tokens: int = 0,
) -> list[Tracker]:
    """Return the enabled trackers.

    wandb: off | offline | online.
    resumed_tokens: where the run resumes; later points of an earlier session are replaced.
    """
    trackers: list[Tracker] = []
    if tensorboard:
        trackers.append(_TensorBoard(Path(workdir) / "tensorboard", resumed_tokens))
    if wandb != "off":
        trackers.append(_WandB(Path(workdir), wandb, wandb_project, run_id, config))
    return trackers


class _TensorBoard:
    """Event files in WORKDIR/tensorboard; the step axis is tokens."""

    def __init__(self, directory: Path, resumed_tokens: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboardX", "records.tensorboard=False", "tensorboard") from error
        self._writer = SummaryWriter(
            str(directory),
            purge_step=resumed_tokens + 1 if resumed_tokens else 0,  # TensorBoard drops earlier points from here on
            filename_suffix=f".{time.time_ns()}",  # otherwise two sessions in one second would share a file
        )

    def write(self, record: dict[str, Any]) -> None:
        for name, value in _curves(record).items():
            self._writer.add_scalar(name, value, global_step=record["tokens"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """One W&B run per run id. W&B ignores steps that it has already logged."""

    def __init__(self, workdir: Path, mode: str, project: str, run_id: str, config: dict[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise _missing("wandb", "records.wandb=off", "wandb") from error
        try:
            self._run = wandb.init(
                dir=str(workdir),
                mode=mode,
                project=project,
                id=run_id,
                name=workdir.resolve().name,
                config=config,
                resume="allow",
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(f"W&B did not start: {reason}; or set --config.records.wandb=offline") from error
        self._run.define_metric("*", step_metric="tokens")

    def write(self, record: dict[str, Any]) -> None:
        self._run.log({**_curves(record), "tokens": record["tokens"]}, step=record["step"])

    def close(self) -> None:
        self._run.finish()


def _curves(record: dict[str, Any]) -> dict[str, float]:
    """Return {'train/loss_nats': 3.2, ...} without values that are not finite."""
    curves = {name: value for name, value in record.items() if name not in ("kind", "tokens")}
    shown = {name: value for name, value in curves.items() if value is not None and math.isfinite(value)}
    return {f"{record['kind']}/{name}": value for name, value in shown.items()}


def _missing(package: str, off: str, extra: str) -> UserError:
    return UserError(
        f"the package {package} is not installed; pip install 'smallbatch[{extra}]', or set --config.{off}"
    )
