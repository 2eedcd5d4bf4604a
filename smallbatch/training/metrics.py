"""The metrics of a run: average them between records, write metrics.jsonl and trackers, and measure the time."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from smallbatch.plan.plan import Plan
from smallbatch.runs import records
from smallbatch.runs.trackers import Tracker
from smallbatch.training.validation import Score


@dataclass(frozen=True)
class MetricsProgress:
    """The state of a metrics logger, as stored in a checkpoint."""

    records: int = 0  # in metrics.jsonl
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)  # since the last record: (sum, number of values)
    last_loss_nats: float | None = None  # of the last train record
    secs: float = 0.0
    train_secs: float = 0.0


class MetricsLogger:
    """Writes the records of a run, and measures its time.

    Without a writer, as in all processes except the first, it only checks for divergence.
    """

    def __init__(
        self,
        plan: Plan,
        writer: records.MetricsWriter | None,
        trackers: list[Tracker],
        saved: MetricsProgress | None = None,
    ):
        saved = saved or MetricsProgress()
        self._plan, self._writer, self._trackers = plan, writer, trackers
        self._sums = dict(saved.sums)
        self._secs_before, self._started = saved.secs, time.monotonic()
        self._train_secs_before, self._paused_secs = saved.train_secs, 0.0
        self._pauses, self._paused_at = 0, 0.0  # number of nested pauses, and the start time of the outermost
        self._speed_since = (0, 0.0)  # (step, train_secs) from which the next record measures the speed
        self.last_loss_nats = saved.last_loss_nats

    @property
    def secs(self) -> float:
        """Seconds spent on this run, in all its sessions."""
        return self._secs_before + time.monotonic() - self._started

    @property
    def train_secs(self) -> float:
        """Seconds spent on updates: `secs` without compilation, validation and checkpoints."""
        now = self._paused_at if self._pauses else time.monotonic()
        return self._train_secs_before + now - self._started - self._paused_secs

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time inside the context from the training time; pauses may be nested."""
        if not self._pauses:
            self._paused_at = time.monotonic()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:
                self._paused_secs += time.monotonic() - self._paused_at

    def mark(self, step: int) -> None:
        """Measure the speed of the next record from this step."""
        self._speed_since = (step, self.train_secs)

    def add(self, step: int, metrics_K: dict[str, np.ndarray]) -> int | None:
        """Add the metrics of the K updates that end at `step`, and write a record if one is due.

        Returns the update at which the run diverged, or None. A run has diverged if a loss is not finite, or if the
        mean loss between two records is far above that of an untrained model.
        """
        losses = metrics_K["loss"]
        if not np.isfinite(losses).all():
            first_bad = step - len(losses) + int(np.argmin(np.isfinite(losses))) + 1
            self._sums["loss"] = (math.nan, 1)
            self._train_record(first_bad)
            return first_bad
        for name, values_K in metrics_K.items():
            defined = values_K[~np.isnan(values_K)]
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + float(np.sum(defined, dtype=np.float64)), count + len(defined))
        stage = self._plan.stage_at(step - 1)
        if (step - stage.first_step) % stage.log_every_steps and step != stage.last_step:
            return None
        mean_nats = self._train_record(step)
        # The logits of an untrained model have unit variance, so its expected loss is log V + 1/2.
        untrained_nats = math.log(self._plan.model.vocab_size) + 0.5
        return step if mean_nats > untrained_nats + self._plan.diverged_above_start_nats else None

    def add_validation(self, step: int, score: Score) -> None:
        """Write a validation record."""
        fields = {} if score.average_loss_nats is None else {"average_loss_nats": score.average_loss_nats}
        self._write("validation", step, loss_nats=score.loss_nats, bits_per_byte=score.bits_per_byte, **fields)

    def progress(self) -> MetricsProgress:
        """Return the state that a resumed run needs, once all records are on disk."""
        if self._writer:
            self._writer.sync()
        written = self._writer.count if self._writer else 0
        return MetricsProgress(written, dict(self._sums), self.last_loss_nats, self.secs, self.train_secs)

    def close(self) -> None:
        """Close metrics.jsonl and the trackers."""
        for output in (*filter(None, [self._writer]), *self._trackers):
            output.close()

    def _train_record(self, step: int) -> float:
        """Write the means since the last record; return the mean loss in nats."""
        means = {name: total / count if count else math.nan for name, (total, count) in self._sums.items()}
        mean_nats = means.pop("loss")
        now = self.train_secs
        tokens_per_step = self._plan.stage_at(step - 1).tokens_per_step
        steps, secs = step - self._speed_since[0], now - self._speed_since[1]
        fields = {"clipped_frac": means.pop("clipped")} if "clipped" in means else {}
        if "grad_norm" in means:
            signal, noise = means["grad_signal_sq"], means["grad_noise_sq"]
            noise_scale_tokens = self._plan.model.context_tokens * noise / signal if signal > 0 else math.nan
            path_per_token = means["update_norm"] / tokens_per_step
            fields |= means | {"path_per_token": path_per_token, "noise_scale_tokens": noise_scale_tokens}
        self._write(
            "train",
            step,
            loss_nats=mean_nats,
            learning_rate=self._plan.learning_rate(step - 1),
            tokens_per_sec=steps * tokens_per_step / secs if secs > 0 else None,
            **fields,
        )
        self._speed_since = (step, now)
        self._sums, self.last_loss_nats = {}, mean_nats
        return mean_nats

    def _write(self, kind: str, step: int, **fields) -> None:
        tokens = self._plan.tokens_at(step)
        record = {"kind": kind, "step": step, "tokens": tokens, "flops": tokens * self._plan.flops_per_token}
        record |= fields | {"secs": self.secs}
        for output in (*filter(None, [self._writer]), *self._trackers):
            output.write(record)
