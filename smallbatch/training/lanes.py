"""Runs of equal shape as lanes of one program: small models leave an accelerator idle, many at once do not.

Lanes differ in hyperparameters and seed, and share the tokens. Nothing crosses from lane to lane, so one that diverges
touches no other; it cannot stop early either, and idles along. A group is saved as a whole, and each lane leaves the
records and the result that it would leave alone. What has a result is never written to again.
"""

import contextlib
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smallbatch import optim
from smallbatch.data.dataset import Dataset
from smallbatch.data.stream import TrainStream
from smallbatch.errors import UserError
from smallbatch.plan.plan import Plan
from smallbatch.runs import records
from smallbatch.runs.progress import Progress, log
from smallbatch.runs.run_dir import RunDir
from smallbatch.specs import ProgramSpec
from smallbatch.training import sharding
from smallbatch.training import train_step as steps
from smallbatch.training.checkpoint import Checkpoints
from smallbatch.training.metrics import MetricsLogger
from smallbatch.training.program import Programs, bytes_per_device, compiled, jit_of, out_of_memory, over_memory
from smallbatch.training.run import now, result_of
from smallbatch.training.trainer import Outcome, chunk_length, identity
from smallbatch.training.validation import Score, validate

# What differs between the plans of lanes that can run together.
OF_A_LANE = (
    *(
        "fingerprint",
        "hyperparams",
        "averages",
        "transfer",
        "seed",
        "warmup_tokens",
        "first_learning_rates",
        "warnings",
    ),
    "weight_decay_timescale_frac",
)
LEAST_GAIN = 1.1  # in tokens/s, from twice as many lanes
MOST_MEMORY_FRAC = 0.8


class OutOfMemory(UserError):
    """So many lanes do not fit the memory of the devices."""

    def __init__(self, lanes: int, reason: str):
        super().__init__(
            f"{lanes} lanes do not fit the memory of a device ({reason}); choose fewer with --lanes, a smaller "
            "train.microbatch_size, or model.remat=full"
        )


@contextlib.contextmanager
def memory_told(lanes: int):
    """Turn what XLA raises where memory runs out, compiling or running, into OutOfMemory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not (reason := out_of_memory(error)):
            raise
        raise OutOfMemory(lanes, reason) from None


def shape_of(plan: Plan) -> str:
    """Return what plans have in common that can be lanes of one program."""
    return json.dumps({key: value for key, value in plan.to_dict().items() if key not in OF_A_LANE}, sort_keys=True)


class CompiledLanes:
    """The programs of R lanes."""

    def __init__(self, spec: ProgramSpec, lanes: int, devices: int):
        self.alone = compiled(spec)
        self.lanes, self.mesh = lanes, sharding.lanes_mesh(devices)
        self.split, self.replicated = sharding.lanes_sharding(self.mesh), sharding.replicated(self.mesh)
        jit = partial(jit_of, spec)
        init = partial(steps.init_state, spec.model, spec.optimizer)
        self.init = jit(
            jax.vmap(lambda hyperparams: init(hyperparams, jax.random.key(hyperparams.seed))), out_shardings=self.split
        )
        chunk = partial(steps.update_chunk, spec.model, spec.optimizer)
        self._chunk = jit(sharding.over_lanes(self.mesh, chunk, shared=2), donate_argnums=0)

    @property
    def abstract_state(self) -> steps.TrainState:
        """Shapes, dtypes and shardings of the stacked state."""
        stack = lambda x: jax.ShapeDtypeStruct((self.lanes, *x.shape), x.dtype, sharding=self.split)
        return jax.tree.map(stack, self.alone.abstract_state)

    @functools.cached_property
    def chunk(self):
        """The program of a chunk of updates of every lane."""
        tokens = jax.ShapeDtypeStruct(self.alone.tokens_shape, jnp.int32, sharding=self.replicated)
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=self.replicated)
        stack = lambda x: jax.ShapeDtypeStruct((self.lanes,), x.dtype, sharding=self.split)
        hyperparams = jax.tree.map(stack, optim.HyperParams.abstract())
        return self._chunk.lower(self.abstract_state, hyperparams, tokens, count).compile()

    @property
    def memory_bytes(self) -> int:
        """Return the bytes that one device needs for an update of its lanes, from the program's memory analysis."""
        analysis = self.chunk.memory_analysis()
        assert analysis is not None  # supported by CPU, GPU and TPU backends
        return bytes_per_device(self.abstract_state) + analysis.temp_size_in_bytes

    def stacked(self, plans: list[Plan]) -> optim.HyperParams:
        """Return the hyperparameters of R lanes; the last plan fills lanes that no plan is left for."""
        filled = plans + [plans[-1]] * (self.lanes - len(plans))
        columns = [optim.HyperParams.from_floats(**plan.hyperparams) for plan in filled]
        return jax.device_put(jax.tree.map(lambda *xs: jnp.stack(xs), *columns), self.split)

    def put_tokens(self, sequences: sharding.Sequences, first: int, updates: int) -> jax.Array:
        """Put the batches of up to K updates on every device (see `sharding.staged`)."""
        return sharding.staged(self.alone.tokens_shape, self.replicated, sequences, first, updates)

    def check_memory(self, most_frac: float = 1.0, with_updates: bool = True) -> None:
        """Raise OutOfMemory if the state, or an update (which is compiled for this), needs more than a share of it.

        XLA's CPU backend waits for ever where it gets no memory.
        """
        needed = self.memory_bytes if with_updates else bytes_per_device(self.abstract_state)
        if too_much := over_memory(needed, self.mesh, most_frac):
            raise OutOfMemory(self.lanes, f"they take {too_much}")


compiled_lanes = functools.lru_cache(maxsize=8)(CompiledLanes)


def choose_lanes(plan: Plan, most: int, devices: int, secs: float = 1.0) -> int:
    """Return how many lanes to run at once: doubled until that gains less than 10% or memory runs out.

    Raises OutOfMemory if it does so at a lane a device.
    """
    best, best_rate, lanes = 0, 0.0, devices
    while lanes <= max(most, devices):
        try:
            with memory_told(lanes):
                programs = compiled_lanes(plan.program, lanes, devices)
                programs.check_memory(MOST_MEMORY_FRAC if best else 1.0)
                rate = _updates_per_sec(programs, plan, secs) * lanes
        except OutOfMemory:
            if not best:
                raise
            break
        if rate < LEAST_GAIN * best_rate:
            break
        best, best_rate, lanes = lanes, rate, 2 * lanes
    return best


def _updates_per_sec(programs: CompiledLanes, plan: Plan, secs: float) -> float:
    hyperparams = programs.stacked([plan])
    state = programs.init(hyperparams)
    updates = plan.steps_per_dispatch
    zeros = lambda first, n: np.zeros((n, plan.model.context_tokens + 1), np.int32)
    tokens = programs.put_tokens(zeros, 0, updates)
    run = lambda state: programs.chunk(
        state, hyperparams, tokens, jax.device_put(np.int32(updates), programs.replicated)
    )
    state, _ = jax.block_until_ready(run(state))
    dispatches, start = 0, time.perf_counter()
    while time.perf_counter() - start < secs:
        state, _ = jax.block_until_ready(run(state))
        dispatches += 1
    return dispatches * updates / (time.perf_counter() - start)


Member = tuple[Plan, Path] | None  # the plan and the run directory of a lane; None: it only keeps the place of one


class _Lane:
    """What is written down of a lane that is trained."""

    def __init__(self, plan: Plan, workdir: RunDir, progress: dict[str, Any] | None):
        """progress: of the group's checkpoint; None: the run begins."""
        # A run of its own that was begun here cannot go on with our records.
        shutil.rmtree(workdir.checkpoints, ignore_errors=True)
        records.rewind(workdir.metrics, progress["records"] if progress else 0)
        self.plan, self.workdir, self.programs = plan, workdir, Programs(plan)
        self.metrics_logger = MetricsLogger(plan, records.MetricsWriter(workdir.metrics), [], progress)

    def progress(self) -> dict[str, Any]:
        """Return what it needs to go on, and by what its records are known."""
        found = self.metrics_logger.progress()
        return found | {"metrics_sha256": _sha256(self.workdir, found["records"])}


def _sha256(workdir: RunDir, count: int) -> str:
    """Return a digest of the first records of a run; no other run has the same, for they say what the clock said."""
    lines = workdir.metrics.read_bytes().splitlines(keepends=True) if workdir.metrics.exists() else []
    return hashlib.sha256(b"".join(lines[:count])).hexdigest()


class LaneTrainer:
    """Trains plans of one shape together, each in its run directory; goes on where the group was saved.

    Once it has been saved, a lane goes on only where its run is what the group left. One that has ended, or that was
    begun anew by another engine since, is left alone: the lane idles.
    """

    def __init__(
        self, members: list[Member], group: Path, dataset: Dataset, lanes: int, devices: int,
        checkpoint_every_secs: float, keep: bool = False,
    ):  # fmt: skip
        """members: by lane. keep: whether a run that is done keeps a checkpoint of its own."""
        self._members = members
        plans = [member[0] for member in members if member]
        self._plan, self._dataset, self._keep = plans[0], dataset, keep
        self._programs: CompiledLanes = compiled_lanes(self._plan.program, lanes, devices)
        self._hyperparams = self._programs.stacked([member[0] if member else self._plan for member in members])
        self._stream = TrainStream(dataset, self._plan.model.context_tokens, self._plan.shuffle_seed)
        self._checkpoints = Checkpoints(group / "checkpoints")
        self._checkpoint_every_secs = checkpoint_every_secs
        self._started = now()
        self._lanes: dict[int, _Lane] = {}  # those that are trained

    def run(self, look: Callable[[set[int]], bool]) -> bool:
        """Train to the end, writing a result for every lane; return False if it was stopped and saved before.

        look: called after every chunk with the lanes that are being trained; tells whether to stop.
        """
        try:
            with memory_told(self._programs.lanes):
                self._programs.check_memory(with_updates=False)
                state, saved = self._restore()
                self._lanes.update(self._begun(saved))
                with Progress(f"{len(self._lanes)} lanes", self._plan.budget_tokens) as progress:
                    return self._loop(state, saved["step"] if saved else 0, look, progress)
        finally:
            for lane in self._lanes.values():
                lane.metrics_logger.close()
            self._checkpoints.close()

    def _begun(self, saved: dict[str, Any] | None) -> Iterator[tuple[int, _Lane]]:
        with contextlib.ExitStack() as pauses:  # restoring other runs is no training time
            for i, member in enumerate(self._members):
                if member is None:
                    continue
                plan, workdir = member[0], RunDir(member[1])
                progress = saved["lanes"][i] if saved else None
                if saved and (progress is None or _sha256(workdir, progress["records"]) != progress["metrics_sha256"]):
                    log(
                        f"{workdir.path} has changed since its group saved it; its lane stays idle, and the cell "
                        "restarts in another group"
                    )
                    continue
                lane = _Lane(plan, workdir, progress)
                pauses.enter_context(lane.metrics_logger.pause())
                yield i, lane

    def _loop(self, state: steps.TrainState, step: int, look: Callable[[set[int]], bool], progress: Progress) -> bool:
        plan, saved_at = self._plan, time.monotonic()
        with self._paused():
            log(f"compiling {self._programs.lanes} lanes of {plan.model.layers} layers ...")
            self._programs.check_memory()
        for lane in self._lanes.values():
            lane.metrics_logger.mark(step)
        while step < plan.optimizer_steps and self._lanes:
            updates = chunk_length(plan, step, plan.optimizer_steps)
            first_sequence = plan.tokens_at(step) // plan.model.context_tokens
            tokens = self._programs.put_tokens(self._stream.batch, first_sequence, updates)
            count = jax.device_put(np.int32(updates), self._programs.replicated)
            state, metrics = self._programs.chunk(state, self._hyperparams, tokens, count)
            step += updates
            self._take_in(step, updates, metrics)
            progress.update(plan.tokens_at(step), live=str(len(self._lanes)))
            if plan.validate_every_steps and step % plan.validate_every_steps == 0 and step < plan.optimizer_steps:
                for i in self._lanes:
                    self._validate(i, state, step)
            with self._paused():
                stopping = look(set(self._lanes))
            if stopping or time.monotonic() - saved_at >= self._checkpoint_every_secs:
                self._save(step, state)
                saved_at = time.monotonic()
            if stopping and step < plan.optimizer_steps:
                return False
        with self._paused():
            self._finish_all(step, state, look)
        return True

    def _finish_all(self, step: int, state: steps.TrainState, look: Callable[[set[int]], bool]) -> None:
        """Validate the lanes that have finished, and write their results."""
        for i in list(self._lanes):
            score = self._validate(i, state, step)
            if not np.isfinite(score.loss_nats):
                self._finish(i, "diverged", step)
                continue
            lane_state = self._lane_state(i, state)
            if self._keep:
                self._keep_state(self._lanes[i], step, lane_state)
            self._finish(i, "done", step, score, lane_state)
            look(set(self._lanes))  # this is the end, whatever it says

    def _take_in(self, step: int, updates: int, metrics: dict[str, Any]) -> None:
        found = {name: np.asarray(values_RxK)[:, :updates] for name, values_RxK in metrics.items()}
        for i in list(self._lanes):
            metrics_K = {name: values_RxK[i] for name, values_RxK in found.items()}
            diverged_at = self._lanes[i].metrics_logger.add(step, metrics_K, self._lanes[i].programs.learning_rate)
            if diverged_at is not None:
                self._finish(i, "diverged", diverged_at)

    def _validate(self, i: int, state: steps.TrainState, step: int) -> Score:
        with self._paused():
            score = validate(self._lanes[i].programs, self._lane_state(i, state), self._dataset)
        self._lanes[i].metrics_logger.validation(step, score)
        return score

    def _lane_state(self, i: int, state: steps.TrainState) -> steps.TrainState:
        """Return one lane's state as a run of its own has it."""
        device = self._lanes[i].programs.mesh.devices.flat[0]
        return jax.tree.map(lambda x: jax.device_put(x[i], device), state)

    def _finish(
        self, i: int, status: str, step: int, score: Score | None = None, state: steps.TrainState | None = None
    ) -> None:
        lane, count = self._lanes.pop(i), len(self._members)
        outcome = Outcome(
            status,
            step,
            {} if state is None else state.params,
            score,
            lane.metrics_logger.last_loss_nats,
            step if status == "diverged" else None,
            lane.metrics_logger.secs / count,  # its share: the lanes took this time together
            lane.metrics_logger.train_secs / count,
            program_memory_bytes=self._programs.memory_bytes * self._programs.mesh.size // self._programs.lanes,
        )
        lane.metrics_logger.close()
        devices = self._programs.mesh.size
        result = result_of(lane.plan, self._dataset, outcome, None, self._started, devices, alone=False)
        records.write_result(lane.workdir.result, result)

    def _keep_state(self, lane: _Lane, step: int, state: steps.TrainState) -> None:
        """Save a state as the run's own trainer does."""
        checkpoints = Checkpoints(lane.workdir.checkpoints)
        checkpoints.save(step, state, lane.metrics_logger.progress() | identity(lane.plan, self._dataset))
        checkpoints.close()

    @contextlib.contextmanager
    def _paused(self):
        with contextlib.ExitStack() as pauses:
            for lane in self._lanes.values():
                pauses.enter_context(lane.metrics_logger.pause())
            yield

    def _save(self, step: int, state: steps.TrainState) -> None:
        with self._paused():
            progress = [self._lanes[i].progress() if i in self._lanes else None for i in range(len(self._members))]
            about = {"step": step, "lanes": progress, "dataset_sha256": self._dataset.meta.sha256}
            self._checkpoints.save(step, state, about)

    def _restore(self) -> tuple[steps.TrainState, dict[str, Any] | None]:
        restored = self._checkpoints.restore(self._programs.abstract_state, log)
        if restored is None:
            return self._programs.init(self._hyperparams), None
        state, saved = restored
        if saved["dataset_sha256"] != self._dataset.meta.sha256:
            raise UserError("the checkpoint of a group of lanes belongs to another dataset; delete its directory")
        log(f"going on after update {saved['step']:,} of {self._plan.optimizer_steps:,}")
        return state, saved
