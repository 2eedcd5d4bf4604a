"""The loop on the host: stage tokens, dispatch chunks of updates, write records, save, stop.

The next chunk is dispatched before the losses of the last one are fetched, so that devices do not wait for the host.
At the edges where the state itself is needed (validation, checkpoint, stop) the loop first takes in what is under
way.
"""

import contextlib
import math
import signal
import sys
import time
from dataclasses import dataclass

import jax
import numpy as np

from smallbatch import peaks, records
from smallbatch.data.shards import Dataset
from smallbatch.data.stream import TrainStream
from smallbatch.errors import UserError
from smallbatch.plan import Plan
from smallbatch.progress import Progress
from smallbatch.trackers import Tracker
from smallbatch.training.checkpoint import Checkpoints
from smallbatch.training.journal import Journal
from smallbatch.training.programs import Programs
from smallbatch.training.steps import TrainState
from smallbatch.training.validation import Score, validate
from smallbatch.training.workdir import Workdir


@dataclass(frozen=True)
class Outcome:
    """How the loop ended, and with what."""

    status: str  # done | diverged | preempted
    step: int
    state: TrainState
    score: Score | None
    train_loss_nats: float | None
    diverged_at_step: int | None
    secs: float
    train_secs: float


class Trainer:
    """One run in one process: restores itself, goes on to the end or until it is told to stop."""

    def __init__(self, programs: Programs, dataset: Dataset, workdir: Workdir, checkpoint_every_secs: float):
        self._programs, self._dataset, self._workdir = programs, dataset, workdir
        self._plan: Plan = programs.plan
        self._stream = TrainStream(dataset, self._plan.model.context_tokens, self._plan.shuffle_seed)
        self._checkpoints = Checkpoints(workdir.checkpoints)
        self._checkpoint_every_secs = checkpoint_every_secs
        self._stop = Stop()

    def run(self, state: TrainState, saved: dict | None, open_trackers) -> Outcome:
        """Train on from what `restore` returned; `open_trackers(resumed_tokens)` returns the mirrors of the metrics."""
        step = int(state.opt_state.count)
        records.rewind(self._workdir.metrics, saved["records"] if saved else 0)
        trackers: list[Tracker] = open_trackers(step * self._plan.tokens_per_step)
        journal = Journal(self._plan, records.MetricsWriter(self._workdir.metrics), trackers, saved)
        try:
            with journal.pause():
                say(f"compiling {self._plan.model.layers} layers ...")
                self._programs.compiled_chunk  # noqa: B018 (compiles on first access)
                self._programs.learning_rate(step)  # likewise
            with self._stop, Progress("train", self._plan.budget_tokens) as progress:
                journal.mark(step)
                progress.update(step * self._plan.tokens_per_step)
                return self._loop(state, step, journal, progress)
        finally:
            journal.close()
            self._checkpoints.close()

    def _loop(self, state: TrainState, step: int, journal: Journal, progress: Progress) -> Outcome:
        plan = self._plan
        pending: tuple[int, int, jax.Array] | None = None  # (step after it, updates, losses) of the chunk under way
        saved_at, score, diverged_at = time.monotonic(), None, None
        while diverged_at is None:
            at_end = step == plan.optimizer_steps
            validation_due = at_end or self._validation_due(step)
            stopping = self._stop.requested  # read once: a signal between two looks would stop without saving
            save_due = at_end or stopping or time.monotonic() - saved_at >= self._checkpoint_every_secs
            if pending and (validation_due or save_due):
                diverged_at, pending = self._take_in(pending, journal, progress), None
                if diverged_at is None and validation_due:
                    score = self._validate(state, journal, progress)
                    journal.validation(step, score.loss_nats, score.bits_per_byte)
                    diverged_at = None if math.isfinite(score.loss_nats) else step
                if diverged_at is not None:
                    break
                if save_due:
                    self._save(step, state, journal)
                    saved_at = time.monotonic()
            if at_end or stopping:
                break
            updates = self._chunk_length(step)
            tokens = self._stream.batch(step * plan.batch_size, updates * plan.batch_size)
            state, losses = self._programs.update(state, self._programs.stage(tokens), updates)
            step += updates
            if pending:
                diverged_at = self._take_in(pending, journal, progress)
            pending = (step, updates, losses)
        self._checkpoints.wait()
        if diverged_at is not None:
            return self._outcome("diverged", diverged_at, state, None, journal, diverged_at)
        if step < plan.optimizer_steps:
            return self._outcome("preempted", step, state, None, journal, None)
        if score is None:  # restored from the last checkpoint: everything but the result was there
            score = self._validate(state, journal, progress)
        return self._outcome("done", step, state, score, journal, None)

    def _take_in(self, pending: tuple[int, int, jax.Array], journal: Journal, progress: Progress) -> int | None:
        """Wait for a chunk, write its records, show them. Returns the update at which it diverged, or None."""
        step, updates, losses = pending
        losses_K = np.asarray(losses)[:updates]
        diverged_at = journal.add(step, losses_K, self._programs.learning_rate)
        fields = {"loss": f"{losses_K.mean():.3f}"}
        if peak := peaks.device_peak_flops(jax.devices()[0]):
            rate = step * self._plan.tokens_per_step * self._plan.flops_per_token / journal.train_secs
            fields["mfu"] = f"{rate / (peak * self._plan.mesh.devices):.0%}"
        progress.update(step * self._plan.tokens_per_step, **fields)
        return diverged_at

    def _chunk_length(self, step: int) -> int:
        """Return how many updates go into the next dispatch: never beyond a record, a validation or the end."""
        plan = self._plan
        edges = [plan.steps_per_dispatch, plan.optimizer_steps - step]
        edges += [plan.log_every_steps - step % plan.log_every_steps]
        if plan.validate_every_steps:
            edges += [plan.validate_every_steps - step % plan.validate_every_steps]
        return min(edges)

    def _validation_due(self, step: int) -> bool:
        every = self._plan.validate_every_steps
        return every is not None and step > 0 and step % every == 0

    def _validate(self, state: TrainState, journal: Journal, progress: Progress) -> Score:
        with journal.pause():
            progress.say(f"validating on {len(self._dataset.validation):,} tokens ...")
            return validate(self._programs, state, self._dataset)

    def _save(self, step: int, state: TrainState, journal: Journal) -> None:
        identity = {"fingerprint": self._plan.fingerprint, "dataset_sha256": self._dataset.meta.sha256}
        with journal.pause():
            self._checkpoints.save(step, state, journal.progress() | identity)

    def restore(self) -> tuple[TrainState, dict | None]:
        """Return the state of the newest good checkpoint and what was saved with it, or a fresh state.

        Only reads. Raises UserError for a checkpoint of another config or dataset.
        """
        restored = self._checkpoints.restore(self._programs.abstract_state, say)
        if restored is None:
            return self._programs.init(), None
        state, saved = restored
        ours = {"fingerprint": self._plan.fingerprint, "dataset_sha256": self._dataset.meta.sha256}
        for key, value in ours.items():
            if saved[key] != value:
                raise UserError(
                    f"the checkpoint in {self._workdir.checkpoints} belongs to another {key.partition('_')[0]} "
                    f"({key} {saved[key][:12]}, here {value[:12]}); choose another --workdir, or delete it"
                )
        say(f"going on after update {int(state.opt_state.count):,} of {self._plan.optimizer_steps:,}")
        return state, saved

    def _outcome(
        self, status: str, step: int, state: TrainState, score: Score | None, journal: Journal, diverged_at
    ) -> Outcome:
        return Outcome(
            status, step, state, score, journal.last_loss_nats, diverged_at, journal.secs, journal.train_secs
        )


class Stop:
    """SIGTERM and Ctrl-C ask for a stop at the next edge; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Stop":
        self._before = {}
        for name in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not the main thread: a notebook or a test handles signals itself
                self._before[name] = signal.signal(name, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        del frame
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


def say(text: str) -> None:
    """Print a line of progress where it does not mix with results."""
    print(text, file=sys.stderr, flush=True)
