"""What a run writes down as it goes: loss sums between records, metrics.jsonl, its mirrors, and the clocks."""

import contextlib
import math
import time
from collections.abc import Iterator

import numpy as np

from smallbatch.plan.plan import Plan
from smallbatch.runs import records
from smallbatch.runs.trackers import Tracker
from smallbatch.training.validation import Score


class MetricsLogger:
    """Turns losses of updates into records. What it must remember across a crash is in `progress()`.

    Without a writer, as in all processes of a run but the first, it only looks out for divergence.
    """

    def __init__(
        self, plan: Plan, writer: records.MetricsWriter | None, trackers: list[Tracker], saved: dict | None = None
    ):
        saved = saved or {"sums": {}, "last_loss_nats": None, "secs": 0.0, "train_secs": 0.0}
        self.plan, self._writer, self._trackers = plan, writer, trackers  # the plan of the stage
        self._sums = {name: tuple(pair) for name, pair in saved["sums"].items()}  # (sum, number of values)
        self._secs_before, self._started = saved["secs"], time.monotonic()
        self._train_secs_before, self._paused_secs = saved["train_secs"], 0.0
        self._pauses, self._paused_at = 0, 0.0  # number of nested pauses, and the start time of the outermost
        self._last_record = (0, 0.0)  # (step, train_secs) of the last train record of this session
        self.last_loss_nats: float | None = saved["last_loss_nats"]  # of the last train record

    @property
    def secs(self) -> float:
        """Seconds spent on this run, in all its sessions."""
        return self._secs_before + time.monotonic() - self._started

    @property
    def train_secs(self) -> float:
        """Of these, the seconds spent on updates: without compiling, validation and saving."""
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

    def add(self, step: int, metrics_K: dict[str, np.ndarray], learning_rate) -> int | None:
        """Take in the metrics of the K updates that end at `step`; write a record where one is due.

        Returns the update after which the run counts as diverged (a loss that is not finite, or the mean of a log
        interval far above the loss of an untrained model), or None.
        """
        losses = metrics_K["loss"]
        if not np.isfinite(losses).all():
            first_bad = step - len(losses) + int(np.argmin(np.isfinite(losses))) + 1
            self._sums["loss"] = (math.nan, 1)
            self._train_record(first_bad, learning_rate)
            return first_bad
        for name, values_K in metrics_K.items():
            there = values_K[~np.isnan(values_K)]
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + float(np.sum(there, dtype=np.float64)), count + len(there))
        if (step - self.plan.first_step) % self.plan.log_every_steps and step != self.plan.last_step:
            return None
        mean_nats = self._train_record(step, learning_rate)
        # An untrained model has logits of unit variance, whose expected loss is log V + 1/2.
        start_nats = math.log(self.plan.model.vocab_size) + 0.5
        far = mean_nats > start_nats + self.plan.diverged_above_start_nats
        return step if far else None

    def validation(self, step: int, score: Score) -> None:
        """Write a validation record."""
        fields = {} if score.average_loss_nats is None else {"average_loss_nats": score.average_loss_nats}
        self._write("validation", step, loss_nats=score.loss_nats, bits_per_byte=score.bits_per_byte, **fields)

    def progress(self) -> dict:
        """Return what a resumed run needs, after making sure that all records are on the disk."""
        if self._writer:
            self._writer.sync()
        return {
            "records": self._writer.count if self._writer else 0,
            "sums": {name: list(pair) for name, pair in self._sums.items()},
            "last_loss_nats": self.last_loss_nats,
            "secs": self.secs,
            "train_secs": self.train_secs,
        }

    def close(self) -> None:
        """Close the files."""
        if self._writer:
            self._writer.close()
        for tracker in self._trackers:
            tracker.close()

    def _train_record(self, step: int, learning_rate) -> float:
        means = {name: total / max(count, 1) if count else math.nan for name, (total, count) in self._sums.items()}
        mean_nats = means.pop("loss")
        now = self.train_secs
        steps, secs = step - self._last_record[0], now - self._last_record[1]
        self._write(
            "train",
            step,
            loss_nats=mean_nats,
            learning_rate=learning_rate(step - 1),
            tokens_per_sec=steps * self.plan.tokens_per_step / secs if secs > 0 else None,
            **self._optional_fields(means),
        )
        self._last_record = (step, now)
        self._sums, self.last_loss_nats = {}, mean_nats
        return mean_nats

    def _optional_fields(self, means: dict[str, float]) -> dict[str, float]:
        """Return the fields that clipping and diagnostics add to a train record."""
        fields = {"clipped_frac": means["clipped"]} if "clipped" in means else {}
        if "grad_norm" not in means:
            return fields
        signal, noise = means["grad_signal_sq"], means["grad_noise_sq"]
        context_tokens = self.plan.model.context_tokens
        return fields | {
            **{name: value for name, value in means.items() if name != "clipped"},
            "path_per_token": means["update_norm"] / self.plan.tokens_per_step,
            "noise_scale_tokens": context_tokens * noise / signal if signal > 0 else math.nan,
        }

    def mark(self, step: int) -> None:
        """Start measuring the speed of the next record at this step."""
        self._last_record = (step, self.train_secs)

    def _write(self, kind: str, step: int, **fields) -> None:
        tokens = self.plan.tokens_at(step)
        record = {"kind": kind, "step": step, "tokens": tokens, "flops": tokens * self.plan.flops_per_token}
        record |= fields | {"secs": self.secs}
        if self._writer:
            self._writer.write(record)
        for tracker in self._trackers:
            tracker.write(record)
