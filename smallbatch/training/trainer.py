"""The training loop on the host, for one run or several runs in one program: dispatch, record, validate, save, stop.

The next chunk of updates is dispatched before the metrics of the previous one are fetched, so devices do not wait for
the host. Before validation, a checkpoint or a stop, which need the state, the pending chunk is processed.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from smallbatch.data.dataset import Dataset
from smallbatch.data.stream import TrainStream
from smallbatch.model import decoder
from smallbatch.plan import device_flops
from smallbatch.plan.plan import Plan, Stage
from smallbatch.runs import records
from smallbatch.runs.progress import Progress, log
from smallbatch.runs.run_dir import RunDir
from smallbatch.runs.trackers import Tracker
from smallbatch.training import distributed
from smallbatch.training.checkpoint import Checkpoints
from smallbatch.training.metrics import MetricsLogger, MetricsProgress
from smallbatch.training.program import memory_errors, train_program
from smallbatch.training.saved import Saved, SavedRun
from smallbatch.training.signals import Stop
from smallbatch.training.train_step import Metrics
from smallbatch.training.validation import Score, validate


@dataclass(frozen=True)
class Run:
    """One of the runs that are trained together."""

    plan: Plan
    workdir: RunDir
    open_trackers: Callable[[int], list[Tracker]] = lambda resumed_tokens: []


@dataclass(frozen=True)
class Outcome:
    """The final status, score and times of a run."""

    status: str  # done | diverged | stopped
    step: int
    score: Score | None
    train_loss_nats: float | None
    secs: float
    train_secs: float
    stopped: bool = False  # whether a signal or a preemption notice stopped it
    noticed: bool = False  # whether a preemption notice stopped it: restart the run
    program_memory_bytes: int | None = None  # largest program, per device; a lane's share of it


class Trainer:
    """Trains runs of the same shape in one program. Call `restore`, then `run`."""

    def __init__(
        self,
        runs: Sequence[Run | None],
        dataset: Dataset,
        checkpoints: Path,
        checkpoint_every_secs: float,
        stop: Stop,
        program_runs: int | None = None,
        devices: int = 1,
    ):
        """Select the compiled program.

        Args:
            runs: equal except for hyperparameters and seeds; None for a run that has ended.
            checkpoints: directory of the joint checkpoints of all runs.
            program_runs: R of the program, if larger than len(runs); the output of the other lanes is discarded.
            devices: number of devices that several runs are split over. One run uses the mesh of its plan.
        """
        self._runs, self._active = runs, {i: run for i, run in enumerate(runs) if run}
        self._plan = next(iter(self._active.values())).plan
        self._program_runs, self._devices = program_runs or len(runs), devices
        self._dataset, self._directory, self._checkpoints = dataset, checkpoints, Checkpoints(checkpoints)
        self._checkpoint_every_secs, self._stop = checkpoint_every_secs, stop
        self._stream = TrainStream(dataset, self._plan.model.context_tokens, self._plan.shuffle_seed)
        self._loggers: dict[int, MetricsLogger] = {}
        self._scores: dict[int, Score] = {}  # scores of the last validation
        self._outcomes: dict[int, Outcome] = {}
        self._saved: Saved | None = None
        self._noticed, self._program_memory_bytes = False, 0
        self._set_stage(self._plan.first)

    @property
    def active(self) -> list[int]:
        """Positions of the runs that are still training."""
        return list(self._active)

    def restore(self) -> Saved | None:
        """Load the newest intact checkpoint and return its metadata; initialize and return None if there is none.

        Writes nothing. Raises UserError for a checkpoint of another config or dataset.
        """
        with memory_errors(self._program_runs):
            self._program.check_memory()
            restored = self._checkpoints.restore(self._program.abstract_state, log)
            if restored is None:
                self._state, self._step = self._program.init(self._hyperparams), 0
                return None
        self._state, self._saved = restored[0], Saved.from_json(restored[1])
        self._step = int(np.ravel(self._state.step)[0])
        if (stage := self._plan.stage_at(self._step)) is not self._stage:
            self._set_stage(stage)
        ours = Saved(self._dataset.meta.sha256, self._plan.noise_scale_from(self._stage))
        fingerprints = {i: run.plan.fingerprint for i, run in self._active.items()}
        self._saved.check_same(ours, fingerprints, self._directory)
        self._program_memory_bytes = self._saved.program_memory_bytes
        log(f"resuming after update {self._step:,} of {self._plan.optimizer_steps:,}")
        return self._saved

    def drop(self, position: int) -> None:
        """Exclude a run from the training. Call this before `run`."""
        del self._active[position]

    def run(
        self, until_step: int | None = None, on_end: Callable[[int, Outcome], None] | None = None
    ) -> dict[int, Outcome]:
        """Train to the end or until a stop is requested; return the outcomes by position.

        Args:
            until_step: validate, save and stop after this update.
            on_end: called with the position and outcome of each run as soon as it ends.
        """
        self._until_step = self._plan.optimizer_steps if until_step is None else until_step
        self._on_end = on_end
        try:
            with memory_errors(self._program_runs):
                self._loggers = {i: self._open_logger(i) for i in self._active}
                with self._paused():
                    log(f"compiling {self._plan.model.layers} layers ...")
                    self._compile()
                with self._stop, Progress("train", self._plan.budget_tokens) as self._progress:
                    self._mark_speed()
                    self._session_start = self._plan.tokens_at(self._step), self._train_secs
                    self._progress.update(self._plan.tokens_at(self._step))
                    self._loop()
                    return self._outcomes
        finally:
            for logger in self._loggers.values():
                logger.close()
            self._checkpoints.close()

    def _loop(self) -> None:
        pending: _Chunk | None = None
        saved_at, agreement = time.monotonic(), distributed.Agreement()
        while self._active:
            reached = self._step >= self._until_step
            validation_due = reached or self._validation_due()
            # Poll once: a signal between two polls would stop the loop without a checkpoint.
            stopping, self._noticed, save_due = agreement.any(
                self._stop.requested,
                self._stop.notice is not None,
                time.monotonic() - saved_at >= self._checkpoint_every_secs,
            )
            stopping |= reached
            save_due |= stopping
            stage_ends = self._step == self._stage.last_step
            if pending and (validation_due or save_due or stage_ends):
                self._process(pending)
                pending = None
                if validation_due:
                    self._validate_active()
                if save_due and self._active:
                    self._save()
                    saved_at = time.monotonic()
            if stopping or not self._active:
                break
            if stage_ends:
                self._enter_stage()
            dispatched = self._dispatch()
            if pending:
                self._process(pending)
            pending = dispatched
        with self._paused():
            self._checkpoints.wait()
        for position in self.active:
            score = None
            if self._step >= self._until_step:  # a run restored after its last update has no score
                score = self._scores.get(position) or self._validate(position)
            status = "done" if self._step == self._plan.optimizer_steps else "stopped"
            self._end(position, status, self._step, score)

    def _dispatch(self) -> "_Chunk":
        """Start the next chunk of updates, without waiting for it."""
        updates = chunk_length(self._stage, self._step, self._until_step)
        first_sequence = self._stage.tokens_at(self._step) // self._plan.model.context_tokens
        tokens = self._program.put_tokens(self._stream.batch, first_sequence, updates)
        self._state, metrics = self._program.train(self._state, self._hyperparams, tokens, updates)
        self._step += updates
        return _Chunk(self._step, updates, metrics)

    def _process(self, chunk: "_Chunk") -> None:
        """Wait for a chunk, write its records and end the runs that diverged in it."""
        metrics = {name: np.asarray(values)[..., : chunk.updates] for name, values in chunk.metrics.items()}
        losses = []
        for position in self.active:
            metrics_K = metrics if self._program_runs == 1 else {name: x[position] for name, x in metrics.items()}
            losses.append(metrics_K["loss"].mean())
            diverged_at = self._loggers[position].add(chunk.step, metrics_K)
            if diverged_at is not None:
                self._end(position, "diverged", diverged_at)
        fields = {"loss": f"{np.mean(losses):.3f}"}
        if self._program_runs > 1:
            fields["runs"] = str(len(self._active))
        tokens, secs = self._session_start
        session_tokens = self._program_runs * (self._plan.tokens_at(chunk.step) - tokens)
        rate = session_tokens * self._plan.flops_per_token / (self._train_secs - secs)
        mfu = device_flops.mfu(rate, jax.local_devices()[0].device_kind, self._program.mesh.size)
        if mfu is not None:
            fields["mfu"] = f"{mfu:.0%}"
        self._progress.update(self._plan.tokens_at(chunk.step), **fields)

    def _set_stage(self, stage: Stage) -> None:
        """Select the program and the hyperparameters of a stage."""
        self._stage = stage
        self._program = train_program(self._plan.program(stage), self._program_runs, self._devices)
        plans = [run.plan if run else self._plan for run in self._runs]
        plans += [self._plan] * (self._program_runs - len(plans))
        self._hyperparams = self._program.put_hyperparams(
            [plan.stage_at(stage.first_step).hyperparams for plan in plans]
        )

    def _enter_stage(self) -> None:
        """Continue with the next batch size."""
        with self._paused():
            self._set_stage(self._plan.stage_at(self._step))
            self._progress.log(f"the batch size is now {self._stage.batch_size:,} sequences; compiling ...")
            self._compile()
        self._mark_speed()

    def _compile(self) -> None:
        self._program.check_memory(with_updates=True)
        mesh_bytes = self._program.memory().total_bytes * (self._program.mesh.size if self._program_runs > 1 else 1)
        self._program_memory_bytes = max(self._program_memory_bytes, mesh_bytes // self._program_runs)

    def _validation_due(self) -> bool:
        every, done = self._stage.validate_every_steps, self._step - self._stage.first_step
        return every is not None and done > 0 and done % every == 0

    def _validate_active(self) -> None:
        for position in self.active:
            score = self._scores[position] = self._validate(position)
            self._loggers[position].add_validation(self._step, score)
            if not math.isfinite(score.loss_nats):
                self._end(position, "diverged", self._step)

    def _validate(self, position: int) -> Score:
        with self._paused():
            self._progress.log(f"validating on {len(self._dataset.validation):,} tokens ...")
            hyperparams, state = self._program.run_slice((self._hyperparams, self._state), position)
            return validate(self._program.single, hyperparams, state, self._plan, self._dataset)

    def gathered_params(self) -> decoder.Params:
        """Return the parameters that a single run was last evaluated with, replicated on every device."""
        return self._program.gathered(self._program.evaluation_params(self._hyperparams, self._state))

    def _saved_values(self, positions: Sequence[int]) -> dict[str, Any]:
        """Return the metadata of a checkpoint of these runs, as JSON values."""
        in_group = len(positions) > 1
        runs = [
            SavedRun.of(run.plan, run.workdir, self._loggers[i].progress(), in_group)
            if (run := self._active.get(i))
            else None
            for i in positions
        ]
        source = self._plan.noise_scale_from(self._stage)
        return dataclasses.asdict(Saved(self._dataset.meta.sha256, source, self._program_memory_bytes, runs))

    def _save(self) -> None:
        with self._paused():
            self._checkpoints.save(self._step, self._state, self._saved_values(range(len(self._runs))))

    def save_alone(self, position: int) -> None:
        """Save a checkpoint of a single run in its run directory."""
        checkpoints = Checkpoints(self._active[position].workdir.checkpoints)
        state = self._program.run_slice(self._state, position)
        checkpoints.save(self._step, state, self._saved_values([position]))
        checkpoints.close()

    def _end(self, position: int, status: str, step: int, score: Score | None = None) -> None:
        logger, share = self._loggers[position], len(self._runs)
        outcome = Outcome(
            status,
            step,
            score,
            logger.last_loss_nats,
            logger.secs / share,
            logger.train_secs / share,
            self._stop.requested,
            self._noticed,
            self._program_memory_bytes,
        )
        if self._on_end:
            self._on_end(position, outcome)
        self._outcomes[position] = outcome
        del self._active[position]

    def _open_logger(self, position: int) -> MetricsLogger:
        run, saved = self._active[position], self._saved and self._saved.runs[position]
        progress = saved.metrics if saved else MetricsProgress()
        writer, trackers = None, []
        if distributed.is_first():
            records.rewind(run.workdir.metrics, progress.records)
            writer = records.MetricsWriter(run.workdir.metrics)
            trackers = run.open_trackers(self._plan.tokens_at(self._step))
        return MetricsLogger(run.plan, writer, trackers, progress)

    @property
    def _train_secs(self) -> float:
        return max(logger.train_secs for logger in self._loggers.values())

    def _mark_speed(self) -> None:
        for logger in self._loggers.values():
            logger.mark(self._step)

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """Exclude the time inside the context from the training time of all runs."""
        with contextlib.ExitStack() as pauses:
            for logger in self._loggers.values():
                pauses.enter_context(logger.pause())
            yield


class _Chunk(NamedTuple):
    """Updates that were dispatched and may not have finished."""

    step: int  # number of finished updates after this chunk
    updates: int
    metrics: Metrics


def chunk_length(stage: Stage, step: int, until_step: int) -> int:
    """Return the number of updates to dispatch next, at most up to the next record, validation or end of the stage."""
    done = step - stage.first_step
    edges = [stage.steps_per_dispatch, stage.last_step - step, until_step - step]
    edges += [every - done % every for every in (stage.log_every_steps, stage.validate_every_steps) if every]
    return min(edges)
