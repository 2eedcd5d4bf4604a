"""Train a group of runs in one vectorized program. Each run is a lane of the program.

One small run leaves an accelerator mostly idle. Runs that differ only in hyperparameters and seed share the program
and the tokens. A group has common checkpoints, but each run writes the same records and result as if it were trained
alone. A run ends when it diverges; the later output of its lane is discarded.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from smallbatch.data.dataset import Dataset
from smallbatch.plan.plan import Plan
from smallbatch.runs import records
from smallbatch.runs.progress import log
from smallbatch.training.program import OutOfMemory, TrainProgram, memory_errors, train_program
from smallbatch.training.run import now, result_of
from smallbatch.training.signals import Stop
from smallbatch.training.trainer import Outcome, Run, Trainer

# The values of a plan, and of its stages, in which runs of one program may differ.
PER_RUN = ("fingerprint", "transfer", "seed", "warmup_tokens", "warnings", "weight_decay_timescale_frac")
PER_RUN_AND_STAGE = ("hyperparams", "averages", "first_learning_rates")
MIN_SPEEDUP = 1.1  # in tokens/s, from twice as many runs
MAX_MEMORY_FRAC = 0.8


def shape_of(plan: Plan) -> str:
    """Return a key that is equal for plans whose runs can share a program."""
    values = {key: value for key, value in plan.to_dict().items() if key not in PER_RUN}
    for stage in values["stages"]:
        for key in PER_RUN_AND_STAGE:
            del stage[key]
    return json.dumps(values, sort_keys=True)


def choose_lanes(plan: Plan, most: int, devices: int, secs: float = 1.0) -> int:
    """Return how many runs to train at once: double it until throughput gains less than 10% or memory runs out.

    Raises OutOfMemory if one run per device does not fit.
    """
    best, best_rate, runs = 0, 0.0, devices
    while runs <= max(most, devices):
        try:
            with memory_errors(runs):
                program = train_program(plan.program(), runs, devices)
                program.check_memory(with_updates=True, max_frac=MAX_MEMORY_FRAC if best else 1.0)
                rate = runs * _updates_per_sec(program, plan, secs)
        except OutOfMemory:
            if not best:
                raise
            break
        if rate < MIN_SPEEDUP * best_rate:
            break
        best, best_rate, runs = runs, rate, 2 * runs
    return best


def _updates_per_sec(program: TrainProgram, plan: Plan, secs: float) -> float:
    """Return the measured updates per second of each run."""
    hyperparams = program.put_hyperparams([plan.first.hyperparams] * program.runs)
    state, updates = program.init(hyperparams), plan.first.steps_per_dispatch
    tokens = program.put_tokens(lambda first, n: np.zeros((n, plan.model.context_tokens + 1), np.int32), 0, updates)
    dispatches, start = -1, 0.0  # the first dispatch is not measured
    while dispatches < 1 or time.perf_counter() - start < secs:
        if dispatches == 0:
            start = time.perf_counter()
        state, _ = jax.block_until_ready(program.train(state, hyperparams, tokens, updates))
        dispatches += 1
    return dispatches * updates / (time.perf_counter() - start)


class _GroupStop(Stop):
    """A stop requested by `poll`, called with the positions of the runs in training. The sweep handles signals."""

    def __init__(self, poll: Callable[[list[int]], bool]):
        self._poll, self.notice = poll, None
        self.trainer: Trainer | None = None

    def __enter__(self) -> "_GroupStop":
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def requested(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._poll(self.trainer.active if self.trainer else [])


def train_group(
    runs: Sequence[Run | None],
    group: Path,
    dataset: Dataset,
    program_runs: int,
    devices: int,
    checkpoint_every_secs: float,
    poll: Callable[[list[int]], bool],
    keep: bool = False,
) -> bool:
    """Train runs together, each in its run directory, and write their results; return False if stopped before the end.

    A run whose records have changed since the group was saved, because another engine trained it, is left out.

    Args:
        runs: None for a run that has a result.
        group: directory of the group's checkpoints.
        poll: called before every dispatch with the positions of the runs in training; returns whether to stop.
        keep: whether to save a separate checkpoint of each finished run.
    """
    started, stop = now(), _GroupStop(poll)
    trainer = stop.trainer = Trainer(
        runs, dataset, group / "checkpoints", checkpoint_every_secs, stop, program_runs, devices
    )
    saved = trainer.restore()
    for position in trainer.active:
        run = runs[position]
        assert run is not None
        saved_run = saved.runs[position] if saved else None
        if saved and not (saved_run and saved_run.is_continued_in(run.workdir)):
            log(f"{run.workdir.path} has changed since its group was saved; it restarts in another group")
            trainer.drop(position)
        else:  # the run's own checkpoint would not match the records of the group
            shutil.rmtree(run.workdir.checkpoints, ignore_errors=True)

    def write_result(position: int, outcome: Outcome) -> None:
        run = runs[position]
        if outcome.status == "stopped" or run is None:
            return
        if keep and outcome.status == "done":
            trainer.save_alone(position)
        records.write_result(run.workdir.result, result_of(run.plan, dataset, outcome, None, started, devices, False))

    outcomes = trainer.run(on_end=write_result) if trainer.active else {}
    return all(outcome.status != "stopped" for outcome in outcomes.values())
