"""The loop on the host: stage tokens, dispatch chunks of updates, write records, save, stop.

The next chunk is dispatched before the metrics of the last one are fetched, so that devices do not wait for the host.
At the edges where the state itself is needed (validation, checkpoint, stop) the loop first takes in what is under
way.
"""

import math
import time
from dataclasses import dataclass

import jax
import numpy as np

from smallbatch.data.dataset import Dataset
from smallbatch.data.stream import TrainStream
from smallbatch.errors import UserError
from smallbatch.model import decoder
from smallbatch.plan import device_flops as peaks
from smallbatch.plan.plan import Plan
from smallbatch.runs import records
from smallbatch.runs.progress import Progress, log
from smallbatch.runs.run_dir import RunDir
from smallbatch.training import distributed
from smallbatch.training.checkpoint import Checkpoints
from smallbatch.training.metrics import MetricsLogger
from smallbatch.training.program import Programs, out_of_memory, too_large
from smallbatch.training.signals import Stop
from smallbatch.training.train_step import Metrics, TrainState
from smallbatch.training.validation import Score, validate


@dataclass(frozen=True)
class Outcome:
    """How the loop ended, and with what."""

    status: str  # done | diverged | stopped
    step: int
    params: decoder.Params  # that the score is of
    score: Score | None
    train_loss_nats: float | None
    diverged_at_step: int | None
    secs: float
    train_secs: float
    stopped: bool = False  # by a signal or a notice
    noticed: bool = False  # by a notice: nobody outside has asked for it
    program_memory_bytes: int | None = None  # on one device, of the largest program of the run


class Trainer:
    """One run in one process: restores itself, goes on to the end or until it is told to stop."""

    def __init__(self, programs: Programs, dataset: Dataset, workdir: RunDir, checkpoint_every_secs: float, stop: Stop):
        self._programs, self._dataset, self._workdir = programs, dataset, workdir  # programs of the stage it is in
        self._run = plan = programs.plan
        self._stream = TrainStream(dataset, plan.model.context_tokens, plan.shuffle_seed)
        self._checkpoints = Checkpoints(workdir.checkpoints)
        self._checkpoint_every_secs = checkpoint_every_secs
        self._stop, self._noticed = stop, False
        self._program_memory_bytes = 0

    def run(self, state: TrainState, saved: dict | None, open_trackers, until_step: int | None = None) -> Outcome:
        """Train on from what `restore` returned; `open_trackers(resumed_tokens)` returns the mirrors of the metrics.

        until_step: validate, save and stop after this update.
        """
        self._until_step = self._run.optimizer_steps if until_step is None else until_step
        step = int(state.opt_state.count)
        writer, trackers = None, []
        if distributed.is_first():
            records.rewind(self._workdir.metrics, saved["records"] if saved else 0)
            writer, trackers = records.MetricsWriter(self._workdir.metrics), open_trackers(self._plan.tokens_at(step))
        metrics_logger = MetricsLogger(self._plan, writer, trackers, saved)
        try:
            with metrics_logger.pause():
                log(f"compiling {self._plan.model.layers} layers ...")
                self._compile(step)
            with self._stop, Progress("train", self._plan.budget_tokens) as progress:
                metrics_logger.mark(step)
                self._session = self._plan.tokens_at(step), metrics_logger.train_secs  # where this session began
                progress.update(self._plan.tokens_at(step))
                return self._loop(state, step, metrics_logger, progress)
        except jax.errors.JaxRuntimeError as error:
            raise (too_large(error) if out_of_memory(error) else error) from None
        finally:
            metrics_logger.close()
            self._checkpoints.close()

    def _loop(self, state: TrainState, step: int, metrics_logger: MetricsLogger, progress: Progress) -> Outcome:
        pending: tuple[int, int, Metrics] | None = None  # (step after it, updates, metrics) of the chunk under way
        saved_at, score, diverged_at = time.monotonic(), None, None
        agreement = distributed.Agreement()
        while diverged_at is None:
            plan = self._plan
            paused = step >= self._until_step
            validation_due = paused or self._validation_due(step)
            # Asked once: a signal between two looks would stop without saving.
            stopping, self._noticed, save_due = agreement.any(
                self._stop.requested,
                self._stop.notice is not None,
                time.monotonic() - saved_at >= self._checkpoint_every_secs,
            )
            stopping |= paused
            save_due |= stopping
            if pending and (validation_due or save_due or step == plan.last_step):
                diverged_at, pending = self._process(pending, metrics_logger, progress), None
                if diverged_at is None and validation_due:
                    score = self._validate(state, metrics_logger, progress)
                    metrics_logger.validation(step, score)
                    diverged_at = None if math.isfinite(score.loss_nats) else step
                if diverged_at is not None:
                    break
                if save_due:
                    self._save(step, state, metrics_logger)
                    saved_at = time.monotonic()
            if stopping:
                break
            if step == plan.last_step:
                plan = self._enter_stage(step, metrics_logger, progress)
            updates = chunk_length(plan, step, self._until_step)
            first_sequence = plan.tokens_at(step) // plan.model.context_tokens
            tokens = self._programs.put_tokens(self._stream.batch, first_sequence, updates)
            state, metrics = self._programs.update(state, tokens, updates)
            step += updates
            if pending:
                diverged_at = self._process(pending, metrics_logger, progress)
            pending = (step, updates, metrics)
        with metrics_logger.pause():
            self._checkpoints.wait()
        if diverged_at is not None:
            return self._outcome("diverged", diverged_at, state, None, metrics_logger, diverged_at)
        there = step >= self._until_step
        if there and score is None:  # restored from its last checkpoint: everything but the result was there
            score = self._validate(state, metrics_logger, progress)
        status = "done" if step == self._run.optimizer_steps else "stopped"
        return self._outcome(status, step, state, score if there else None, metrics_logger, None)

    def _process(
        self, pending: tuple[int, int, Metrics], metrics_logger: MetricsLogger, progress: Progress
    ) -> int | None:
        """Wait for a chunk, write its records, show them. Returns the update at which it diverged, or None."""
        step, updates, metrics = pending
        metrics_K = {name: np.asarray(values)[:updates] for name, values in metrics.items()}
        diverged_at = metrics_logger.add(step, metrics_K, self._programs.learning_rate)
        fields = {"loss": f"{metrics_K['loss'].mean():.3f}"}
        tokens, secs = self._session
        rate = (self._plan.tokens_at(step) - tokens) * self._plan.flops_per_token / (metrics_logger.train_secs - secs)
        mfu = peaks.mfu(rate, jax.local_devices()[0].device_kind, self._plan.mesh.devices)
        if mfu is not None:
            fields["mfu"] = f"{mfu:.0%}"
        progress.update(self._plan.tokens_at(step), **fields)
        return diverged_at

    @property
    def _plan(self) -> Plan:
        return self._programs.plan

    def _compile(self, step: int) -> None:
        self._programs.check_memory(with_updates=True)  # compiles them
        self._program_memory_bytes = max(self._program_memory_bytes, self._programs.compiled.memory().total_bytes)
        self._programs.learning_rate(step)  # likewise

    def _enter_stage(self, step: int, metrics_logger: MetricsLogger, progress: Progress) -> Plan:
        """Go on with the next batch size; return its plan."""
        with metrics_logger.pause():
            self._programs = Programs(self._run.stage_at(step))
            progress.log(f"the batch is now {self._plan.batch_size:,} sequences; compiling ...")
            metrics_logger.plan = self._plan
            self._compile(step)
        metrics_logger.mark(step)
        return self._plan

    def _validation_due(self, step: int) -> bool:
        every = self._plan.validate_every_steps
        return every is not None and step > self._plan.first_step and (step - self._plan.first_step) % every == 0

    def _validate(self, state: TrainState, metrics_logger: MetricsLogger, progress: Progress) -> Score:
        with metrics_logger.pause():
            progress.log(f"validating on {len(self._dataset.validation):,} tokens ...")
            return validate(self._programs, state, self._dataset)

    def _save(self, step: int, state: TrainState, metrics_logger: MetricsLogger) -> None:
        with metrics_logger.pause():
            memory = {"program_memory_bytes": self._program_memory_bytes}
            progress = metrics_logger.progress() | memory | identity(self._plan, self._dataset)
            self._checkpoints.save(step, state, progress)

    def restore(self) -> tuple[TrainState, dict | None]:
        """Return the state of the newest good checkpoint and what was saved with it, or a fresh state.

        Only reads. Raises UserError for a checkpoint of another config or dataset.
        """
        restored = self._checkpoints.restore(self._programs.abstract_state, log)
        if restored is None:
            return self._programs.init(), None
        state, saved = restored
        stage = self._run.stage_at(int(state.opt_state.count))
        if stage is not self._plan:
            self._programs = Programs(stage)
        ours = identity(self._plan, self._dataset)
        source = ours.pop("noise_scale_from")
        for key, value in ours.items():
            if saved[key] != value:
                raise UserError(
                    f"the checkpoint in {self._workdir.checkpoints} belongs to another {key.partition('_')[0]} "
                    f"({key} {saved[key][:12]}, here {value[:12]}); choose another --workdir, or delete it"
                )
        if saved["noise_scale_from"] != source:
            raise UserError(
                f"this run records the gradient noise scale from {saved['noise_scale_from']}, and on these devices it "
                f"would from {source}; give it as many devices as before, or begin another with train.diagnostics=False"
            )
        self._program_memory_bytes = saved.get("program_memory_bytes", 0)
        log(f"going on after update {int(state.opt_state.count):,} of {self._plan.optimizer_steps:,}")
        return state, saved

    def _outcome(
        self, status: str, step: int, state: TrainState, score: Score | None, metrics_logger: MetricsLogger, diverged_at
    ) -> Outcome:
        return Outcome(
            status,
            step,
            self._programs.evaluation_params(state),
            score,
            metrics_logger.last_loss_nats,
            diverged_at,
            metrics_logger.secs,
            metrics_logger.train_secs,
            self._stop.requested,
            self._noticed,
            self._program_memory_bytes,
        )


def chunk_length(plan: Plan, step: int, until_step: int) -> int:
    """Return how many updates go into the next dispatch: never beyond a record, a validation or the end."""
    done = step - plan.first_step
    edges = [
        plan.steps_per_dispatch,
        plan.last_step - step,
        until_step - step,
        plan.log_every_steps - done % plan.log_every_steps,
    ]
    if plan.validate_every_steps:
        edges += [plan.validate_every_steps - done % plan.validate_every_steps]
    return min(edges)


def identity(plan: Plan, dataset: Dataset) -> dict[str, str]:
    """Return by what a checkpoint is known to be of a run."""
    return {
        "fingerprint": plan.fingerprint,
        "dataset_sha256": dataset.meta.sha256,
        "noise_scale_from": plan.noise_scale_from,
    }
