"""What a run writes down as it goes: loss sums between records, metrics.jsonl, its mirrors, and the clocks."""

import math
import time

import numpy as np

from smallbatch import records
from smallbatch.plan import Plan
from smallbatch.trackers import Tracker


class Journal:
    """Turns losses of updates into records. What it must remember across a crash is in `progress()`."""

    def __init__(self, plan: Plan, writer: records.MetricsWriter, trackers: list[Tracker], saved: dict | None = None):
        saved = saved or {"loss_sum": 0.0, "loss_steps": 0, "last_loss_nats": None, "secs": 0.0, "train_secs": 0.0}
        self._plan, self._writer, self._trackers = plan, writer, trackers
        self._loss_sum, self._loss_steps = saved["loss_sum"], saved["loss_steps"]
        self._secs_before, self._started = saved["secs"], time.monotonic()
        self._train_secs_before, self._pauses = saved["train_secs"], 0.0
        self._last_record = (0, 0.0)  # (step, train_secs) of the last train record of this session
        self.last_loss_nats: float | None = saved["last_loss_nats"]  # of the last train record

    @property
    def secs(self) -> float:
        """Seconds spent on this run, in all its sessions."""
        return self._secs_before + time.monotonic() - self._started

    @property
    def train_secs(self) -> float:
        """Of these, the seconds spent on updates: without compiling, validation and saving."""
        return self._train_secs_before + time.monotonic() - self._started - self._pauses

    def pause(self) -> "_Pause":
        """Return a context whose time does not count as training."""
        return _Pause(self)

    def add(self, step: int, losses: np.ndarray, learning_rate) -> int | None:
        """Take in the losses of the updates that end at `step`; write a record where one is due.

        Returns the update after which the run counts as diverged (a loss that is not finite, or the mean of a log
        interval far above the loss of an untrained model), or None.
        """
        if not np.isfinite(losses).all():
            first_bad = step - len(losses) + int(np.argmin(np.isfinite(losses))) + 1
            self._loss_sum = math.nan
            self._train_record(first_bad, learning_rate)
            return first_bad
        self._loss_sum += float(np.sum(losses, dtype=np.float64))
        self._loss_steps += len(losses)
        if step % self._plan.log_every_steps and step != self._plan.optimizer_steps:
            return None
        mean_nats = self._train_record(step, learning_rate)
        # An untrained model has logits of unit variance, whose expected loss is log V + 1/2.
        start_nats = math.log(self._plan.model.vocab_size) + 0.5
        far = mean_nats > start_nats + self._plan.diverged_above_start_nats
        return step if far else None

    def validation(self, step: int, loss_nats: float, bits_per_byte: float | None) -> None:
        """Write a validation record."""
        self._write("validation", step, loss_nats=loss_nats, bits_per_byte=bits_per_byte)

    def progress(self) -> dict:
        """Return what a resumed run needs, after making sure that all records are on the disk."""
        self._writer.sync()
        return {
            "records": self._writer.count,
            "loss_sum": self._loss_sum,
            "loss_steps": self._loss_steps,
            "last_loss_nats": self.last_loss_nats,
            "secs": self.secs,
            "train_secs": self.train_secs,
        }

    def close(self) -> None:
        """Close the files."""
        self._writer.close()
        for tracker in self._trackers:
            tracker.close()

    def _train_record(self, step: int, learning_rate) -> float:
        mean_nats = self._loss_sum / max(self._loss_steps, 1)
        now = self.train_secs
        steps, secs = step - self._last_record[0], now - self._last_record[1]
        self._write(
            "train",
            step,
            loss_nats=mean_nats,
            learning_rate=learning_rate(step - 1),
            tokens_per_sec=steps * self._plan.tokens_per_step / secs if secs > 0 else None,
        )
        self._last_record = (step, now)
        self._loss_sum, self._loss_steps, self.last_loss_nats = 0.0, 0, mean_nats
        return mean_nats

    def mark(self, step: int) -> None:
        """Start measuring the speed of the next record at this step."""
        self._last_record = (step, self.train_secs)

    def _write(self, kind: str, step: int, **fields) -> None:
        tokens = step * self._plan.tokens_per_step
        record = {"kind": kind, "step": step, "tokens": tokens, "flops": tokens * self._plan.flops_per_token}
        record |= fields | {"secs": self.secs}
        self._writer.write(record)
        for tracker in self._trackers:
            tracker.write(record)


class _Pause:
    def __init__(self, journal: Journal):
        self._journal = journal

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._journal._pauses += time.monotonic() - self._start
