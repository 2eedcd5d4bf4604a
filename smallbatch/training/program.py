"""The compiled program of R >= 1 runs: initial states, chunks of updates, validation scores, and memory."""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smallbatch import optim
from smallbatch.errors import UserError
from smallbatch.model import decoder
from smallbatch.model.cpu_ops import use_cpu_ops
from smallbatch.model.sharding_rules import ShardingRules, use_rules
from smallbatch.runs.progress import format_bytes
from smallbatch.specs import ProgramSpec
from smallbatch.training import eval_step, sharding
from smallbatch.training import traffic as collectives
from smallbatch.training.diagnostics import DiagnosticsState
from smallbatch.training.jax_setup import compiler_options
from smallbatch.training.train_step import Metrics, TrainState, init_state, train_chunk, train_step


class OutOfMemory(UserError):
    """The runs of a program do not fit in the memory of a device."""

    def __init__(self, runs: int, reason: str):
        what, fix = "an update does not fit", ""
        if runs > 1:
            what, fix = f"{runs} runs in one program do not fit", "fewer runs with --lanes, "
        super().__init__(
            f"{what} in the memory of a device ({reason}); choose {fix}a smaller model or train.microbatch_size, "
            "model.remat=full, an optimizer with less state, or more devices"
        )


@contextlib.contextmanager
def memory_errors(runs: int) -> Iterator[None]:
    """Raise OutOfMemory in place of XLA's out-of-memory error, at compilation or execution."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not (reason := memory_error(error)):
            raise
        raise OutOfMemory(runs, reason) from None


def memory_error(error: Exception) -> str:
    """Return XLA's reason if it ran out of memory, else ""."""
    match = re.search(r"RESOURCE_EXHAUSTED:? *(.*)", str(error))
    return match[1] or "no reason reported by XLA" if match else ""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while a chunk of updates runs, from XLA's buffer assignment."""

    params_bytes: int
    optimizer_state_bytes: int
    temporary_bytes: int  # gradients, activations and scratch at their peak
    batch_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.params_bytes + self.optimizer_state_bytes + self.temporary_bytes + self.batch_bytes


def jit_of(spec: ProgramSpec, f: Callable, rules: ShardingRules | None = None, **options) -> Any:
    """Return jax.jit of f with the precision, operations and compiler options of the program, and sharding rules."""

    def traced(*args):
        precision = jax.default_matmul_precision(spec.model.matmul_precision)
        with precision, use_rules(rules), use_cpu_ops(spec.platform == "cpu"):
            return f(*args)

    traced.__name__ = getattr(f, "func", f).__name__  # shown in profiles
    return jax.jit(traced, compiler_options=compiler_options(spec.platform, spec.model), **options)


class TrainProgram:
    """The compiled functions of R runs that share a `ProgramSpec`, each compiled on first use.

    The runs differ in hyperparameters and seed, which are arguments, and share the tokens. One run uses the mesh of the
    spec and has no leading axis. With R > 1, states, hyperparameters and metrics have a leading axis R, which is split
    over `devices`; nothing is communicated between runs.
    """

    def __init__(self, spec: ProgramSpec, runs: int = 1, devices: int = 1):
        self.spec, self.runs = spec, runs
        self._init = partial(init_state, spec.model, spec.optimizer)
        step_fn = partial(train_step, spec.model, spec.optimizer)
        if runs == 1:
            self.mesh = sharding.make_mesh(spec.mesh, spec.topology)
            self.replicated = self.run_sharding = sharding.replicated(self.mesh)
            self.tokens_sharding = sharding.batch_sharding(self.mesh, 2)
            self._jit = partial(jit_of, spec, rules=ShardingRules(self.mesh))
            groups = spec.mesh.data_groups
            average = partial(sharding.average_over_data, self.mesh, groups)
            chunk = partial(train_chunk, partial(step_fn, average=average, data_groups=groups))
        else:
            self.mesh = sharding.lanes_mesh(devices)
            self.replicated, self.run_sharding = sharding.replicated(self.mesh), sharding.lanes_sharding(self.mesh)
            self.tokens_sharding = self.replicated
            self._jit = partial(jit_of, spec)
            self._init = jax.vmap(self._init)
            chunk = sharding.over_lanes(self.mesh, partial(train_chunk, step_fn), shared=2)
        self.state_shardings = self._state_shardings()
        self.init = self._jit(self._init, out_shardings=self.state_shardings)
        self._chunk = self._jit(chunk, donate_argnums=0, out_shardings=(self.state_shardings, self.run_sharding))
        self._score = self._jit(partial(eval_step.score, spec.model), out_shardings=self.replicated)
        self._interpolated_params = self._jit(eval_step.interpolated_params)
        self._averaged_params = self._jit(eval_step.averaged_params)
        self.gathered = self._jit(lambda params: params, out_shardings=self.replicated)  # on every device

    @functools.cached_property
    def single(self) -> "TrainProgram":
        """The program of a single run, which is used for validation."""
        return self if self.runs == 1 else train_program(self.spec)

    def run_slice(self, tree: Any, run: int) -> Any:
        """Return the slice of one run in a state or hyperparameters, as an argument of `single`."""
        if self.runs == 1:
            return tree
        return jax.tree.map(lambda x: jax.device_put(x[run], self.single.mesh.devices.flat[0]), tree)

    @property
    def tokens_shape(self) -> tuple[int, int, int, int]:
        """Shape of the tokens of a chunk, K x A x M x (T + 1)."""
        spec = self.spec
        return spec.steps_per_dispatch, spec.accumulation_steps, spec.microbatch_size, spec.model.context_tokens + 1

    @functools.cached_property
    def abstract_hyperparams(self) -> optim.HyperParams:
        """Shapes, dtypes and shardings of the hyperparameters."""
        lead = (self.runs,) if self.runs > 1 else ()
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(lead, x.dtype, sharding=self.run_sharding), optim.HyperParams.abstract()
        )

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, for compilation and for restoring it."""
        shapes = jax.eval_shape(self._init, self.abstract_hyperparams)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.state_shardings
        )

    def _state_shardings(self) -> Any:
        """Return a TrainState of shardings: arrays like a parameter use its sharding, scalars are replicated."""
        if self.runs > 1:
            shapes = jax.eval_shape(self._init, self.abstract_hyperparams)
            return jax.tree.map(lambda _: self.run_sharding, shapes)
        spec = self.spec.optimizer
        params: Any = sharding.param_shardings(self.mesh, self.spec.model)
        step: Any = self.replicated
        diagnostics = None
        if spec.diagnostics != "off":
            diagnostics = DiagnosticsState(params, params if spec.diagnostics == "successive" else None)
        opt_state = sharding.opt_state_shardings(self.mesh, self.spec.model, spec)
        weight_average = params if spec.weight_average else None
        return TrainState(step, params, opt_state, weight_average, diagnostics)

    @property
    def traced_chunk(self):
        """The chunk of updates, traced and not yet lowered for a platform."""
        tokens = jax.ShapeDtypeStruct(self.tokens_shape, jnp.int32, sharding=self.tokens_sharding)
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=self.replicated)
        return self._chunk.trace(self.abstract_state, self.abstract_hyperparams, tokens, count)

    @functools.cached_property
    def chunk(self):
        """The chunk of updates, compiled ahead of its first execution."""
        with memory_errors(self.runs):
            return self.traced_chunk.lower().compile()

    def memory(self) -> Memory:
        """Return the bytes that one device needs, from XLA's analysis of the compiled chunk."""
        analysis = self.chunk.memory_analysis()
        assert analysis is not None  # CPU, GPU and TPU backends have one
        params = bytes_per_device(self.abstract_state.params)
        state = bytes_per_device(self.abstract_state)
        batch = max(0, analysis.argument_size_in_bytes - state)
        return Memory(params, state - params, analysis.temp_size_in_bytes, batch)

    def check_memory(self, with_updates: bool = False, max_frac: float = 1.0) -> None:
        """Raise OutOfMemory if the state, or an update, needs more than `max_frac` of a device's memory.

        Args:
            with_updates: also compile the update and check its memory. XLA's CPU backend hangs if an allocation fails.
        """
        needed = self.memory().total_bytes if with_updates else bytes_per_device(self.abstract_state)
        local = [device for device in self.mesh.devices.flat if device.process_index == jax.process_index()]
        needed *= len(local) if local[0].platform == "cpu" else 1  # CPU devices share the machine's memory
        limit = device_memory_bytes(local[0])
        if limit is not None and needed > max_frac * limit:
            what = "an update needs" if with_updates else "the weights and the optimizer's state need"
            raise OutOfMemory(self.runs, f"{what} {format_bytes(needed)}, but only {format_bytes(limit)} are available")

    def traffic(self) -> tuple[collectives.Traffic, ...]:
        """Return the collectives of an update."""
        return collectives.traffic(self.chunk.as_text())

    def put_hyperparams(self, values: Sequence[dict[str, Any]]) -> optim.HyperParams:
        """Put the hyperparameters of each run on the devices."""
        columns = [optim.HyperParams.from_floats(**fields) for fields in values]
        stacked = columns[0] if self.runs == 1 else jax.tree.map(lambda *xs: np.stack(xs), *columns)
        return sharding.put(stacked, self.run_sharding)

    def put_tokens(self, sequences: sharding.Sequences, first: int, updates: int) -> jax.Array:
        """Put the batches of up to K updates on the devices (see `sharding.staged`)."""
        return sharding.staged(self.tokens_shape, self.tokens_sharding, sequences, first, updates)

    def train(
        self, state: TrainState, hyperparams: optim.HyperParams, tokens: jax.Array, updates: int
    ) -> tuple[TrainState, Metrics]:
        """Return the state after `updates` updates, and their metrics: [K], or [R, K]. `state` is donated."""
        count = sharding.put(np.int32(updates), self.replicated)
        return self.chunk(state, hyperparams, tokens, count)

    def score(self, params: decoder.Params, tokens_BxT1: np.ndarray, weights_BxT: np.ndarray) -> jax.Array:
        """Return the weighted sum of losses in nats of each sequence of a validation batch, [A, M]. R must be 1."""
        split = sharding.batch_sharding(self.mesh, 1)
        parts = [x.reshape(-1, self.spec.validation_microbatch_seqs, x.shape[1]) for x in (tokens_BxT1, weights_BxT)]
        return self._score(params, *(sharding.put(x, split) for x in parts))

    def evaluation_params(self, hyperparams: optim.HyperParams, state: TrainState) -> decoder.Params:
        """Return the parameters for evaluation: those of the run, or the average of a schedule-free optimizer."""
        if optim.OPTIMIZERS[self.spec.optimizer.name].schedule_free:
            return self._interpolated_params(hyperparams, state)
        return state.params

    def averaged_params(self, hyperparams: optim.HyperParams, state: TrainState) -> decoder.Params | None:
        """Return the weight average of a run, float32; None if it has none."""
        return None if state.weight_average is None else self._averaged_params(hyperparams, state)


_cached_program = functools.lru_cache(maxsize=16)(TrainProgram)


def train_program(spec: ProgramSpec, runs: int = 1, devices: int = 1) -> TrainProgram:
    """Return the program of a spec. A process that trains many runs compiles each shared program once."""
    return _cached_program(spec, runs, devices)


def device_memory_bytes(device) -> int | None:
    """Return the memory of a device, or of the machine for a CPU device; None if the device does not report it."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (device.memory_stats() or {}).get("bytes_limit")


def bytes_per_device(tree) -> int:
    """Return the bytes per device of a pytree of sharded arrays or ShapeDtypeStructs."""
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))
