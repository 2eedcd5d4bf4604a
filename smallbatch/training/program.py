"""The compiled programs of a plan: initial state, a chunk of updates, a scored batch; and the memory they take."""

import contextlib
import functools
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from glob import glob
from importlib import metadata
from pathlib import Path
from platform import machine
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.backend import register_backend_factory

from smallbatch import optim
from smallbatch.errors import UserError
from smallbatch.files import paths
from smallbatch.model import decoder
from smallbatch.model.cpu_ops import use_cpu_ops
from smallbatch.model.sharding_rules import ShardingRules, use_rules
from smallbatch.plan.mesh_plan import fits_cpu_cache
from smallbatch.plan.plan import Plan
from smallbatch.runs.progress import format_bytes
from smallbatch.specs import OPTIMIZER_KEYS, DeviceSpec, ModelSpec, ProgramSpec
from smallbatch.training import sharding
from smallbatch.training import traffic as collectives
from smallbatch.training import train_step as steps


def cpu_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_jax(cpu_devices: int, cache_dir: str | Path) -> DeviceSpec:
    """Set JAX up before its first use, and return the devices that it has.

    A CPU becomes `cpu_devices` devices if it is all there is. Compiled programs are kept under `cache_dir` and reused.
    """
    with contextlib.suppress(RuntimeError):  # JAX runs already (tests, notebooks): its devices stay as they are
        jax.config.update("jax_num_cpu_devices", cpu_devices)
        skip_absent_tpu()
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(paths.local(cache_dir, "data.cache_dir") / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    first = local_devices()[0]
    capability = getattr(first, "compute_capability", None)
    capability = None if capability is None else str(capability)
    return DeviceSpec(jax.default_backend(), jax.device_count(), capability, kind=first.device_kind)


def local_devices() -> list[Any]:
    """Return the devices of this process. Raises UserError if JAX does not have the requested platform."""
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError has no message: there is no GPU
        asked = jax.config.values["jax_platforms"]
        names = ("jax", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin", "libtpu")
        installed = [f"{name} {version}" for name in names if (version := _version(name))]
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        wanted = f"no device of JAX_PLATFORMS={asked}" if asked else "no device that it can use"
        raise UserError(
            f"JAX has {wanted}{reason}. Installed: {', '.join(installed)}. Unset JAX_PLATFORMS to use the available "
            "devices, or install the plugin of the platform (pip install 'smallbatch[gpu]' or 'smallbatch[tpu]') on a "
            "machine with such a device"
        ) from error


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def skip_absent_tpu() -> None:
    """Keep JAX from starting libtpu where there is no TPU: it says so in lines of its own before JAX goes on without.

    All else that JAX may find, such as GPUs, is left to it. Where it has found TPU chips on the PCI bus, or was told
    its platforms, it has them by now; device files show chips to a container that cannot see the bus.
    """
    if not jax.config.values["jax_platforms"] and not glob("/dev/accel*") + glob("/dev/vfio/[0-9]*"):
        register_backend_factory("tpu", lambda: None, priority=300, fail_quietly=True)


def compiler_options(platform: str, model: ModelSpec) -> dict[str, bool | str]:
    """Return what XLA's defaults for this platform leave to be gained."""
    if platform != "cpu":
        return {}
    # Without region analysis XLA copies every parameter that a loop updates, because it cannot see that the backward
    # pass has read it for the last time: a third of the parameters in extra memory, and the time of the copies.
    options: dict[str, bool | str] = {"xla_cpu_copy_insertion_use_region_analysis": True}
    if not fits_cpu_cache(model.context_tokens, model.ffn_width) and machine() in ("x86_64", "AMD64"):
        # The persistent cache cannot hold such programs (jaxlib 0.12), and JAX warns of it for each: they are compiled
        # anew by every process, some ten seconds.
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry .*onednn")
        options["xla_cpu_use_onednn"] = True
        options["xla_cpu_experimental_onednn_fusion_type"] = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    return options


LESS_MEMORY = (
    "choose a smaller model or train.microbatch_size, model.remat=full, an optimizer with less state, or more devices"
)


def out_of_memory(error: Exception) -> str:
    """Return what an error of XLA, of compiling or of running, says of too little memory; "" if it is another."""
    said = re.search(r"RESOURCE_EXHAUSTED:? *(.*)", str(error))
    return said[1] or "XLA says no more" if said else ""


def too_large(error: Exception) -> UserError:
    """Return what a person is told about it."""
    return UserError(f"an update does not fit the memory of a device ({out_of_memory(error)}); {LESS_MEMORY}")


LEARNING_RATES = 4096  # computed together: a single one would wait on the device behind the chunk under way


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while a chunk of updates runs, as XLA's buffer assignment has it."""

    params_bytes: int
    optimizer_state_bytes: int
    temporary_bytes: int  # gradients, activations and scratch, where they are at their peak
    batch_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.params_bytes + self.optimizer_state_bytes + self.temporary_bytes + self.batch_bytes


def jit_of(spec: ProgramSpec, f: Callable, rules: ShardingRules | None = None, **options) -> Any:
    """Return jax.jit of f with the precision, operations and compiler options of the program, and these rules."""

    def traced(*args):
        precision = jax.default_matmul_precision(spec.model.matmul_precision)
        with precision, use_rules(rules), use_cpu_ops(spec.platform == "cpu"):
            return f(*args)

    traced.__name__ = getattr(f, "func", f).__name__  # that of the program, in profiles
    return jax.jit(traced, compiler_options=compiler_options(spec.platform, spec.model), **options)


class Compiled:
    """The programs of a `ProgramSpec`, each compiled on first use; hyperparameters are arguments."""

    def __init__(self, spec: ProgramSpec):
        self.spec = spec
        self.mesh = sharding.make_mesh(spec.mesh, spec.topology)
        self.replicated = sharding.replicated(self.mesh)
        self.state_shardings = self._state_shardings()
        jit = partial(jit_of, spec, rules=ShardingRules(self.mesh))
        init = partial(steps.init_state, spec.model, spec.optimizer)
        self.init = jit(
            lambda hyperparams: init(hyperparams, jax.random.key(hyperparams.seed)), out_shardings=self.state_shardings
        )
        self._chunk = jit(
            partial(
                steps.update_chunk,
                spec.model,
                spec.optimizer,
                average=partial(sharding.average_over_data, self.mesh, spec.mesh.data_groups),
                data_groups=spec.mesh.data_groups,
            ),
            donate_argnums=0,
            out_shardings=(self.state_shardings, self.replicated),
        )
        self.score = jit(partial(steps.scored, spec.model), out_shardings=self.replicated)
        self.interpolated_params = jit(steps.interpolated_params)
        self.averaged_params = jit(steps.averaged_params)
        self.gathered = jit(lambda params: params, out_shardings=self.replicated)
        rate = partial(optim.learning_rate, spec.optimizer.schedule)
        self.learning_rate = jax.jit(jax.vmap(rate, in_axes=(None, 0)))

    @property
    def tokens_shape(self) -> tuple[int, int, int, int]:
        """K x A x M x (T + 1)."""
        s = self.spec
        return s.steps_per_dispatch, s.accumulation_steps, s.microbatch_size, s.model.context_tokens + 1

    @property
    def tokens_sharding(self):
        return sharding.batch_sharding(self.mesh, 2)

    @functools.cached_property
    def abstract_state(self) -> steps.TrainState:
        """Shapes, dtypes and shardings of the state, for restoring it."""
        init = partial(steps.init_state, self.spec.model, self.spec.optimizer)
        shapes = jax.eval_shape(init, optim.HyperParams.abstract(), jax.random.key(0))
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.state_shardings
        )

    @property
    def traced_chunk(self):
        """The program of a chunk of updates before it is lowered for a platform."""
        tokens = jax.ShapeDtypeStruct(self.tokens_shape, jnp.int32, sharding=self.tokens_sharding)
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=self.replicated)
        return self._chunk.trace(self.abstract_state, optim.HyperParams.abstract(self.replicated), tokens, count)

    @functools.cached_property
    def chunk(self):
        """The program of a chunk of updates, compiled ahead of its first run."""
        try:
            return self.traced_chunk.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            raise (too_large(error) if out_of_memory(error) else error) from None

    def memory(self) -> Memory:
        """Return the bytes that one device needs, from the compiled chunk's own analysis."""
        analysis = self.chunk.memory_analysis()
        assert analysis is not None  # every backend of ours has one
        params = bytes_per_device(self.abstract_state.params)
        state = bytes_per_device(self.abstract_state)
        batch = max(0, analysis.argument_size_in_bytes - state)
        return Memory(params, state - params, analysis.temp_size_in_bytes, batch)

    def traffic(self) -> tuple[collectives.Traffic, ...]:
        """Return what devices send each other in an update."""
        return collectives.traffic(self.chunk.as_text())

    def _state_shardings(self) -> steps.TrainState:
        spec = self.spec.optimizer
        params: Any = sharding.param_shardings(self.mesh, self.spec.model)
        state = sharding.opt_state_shardings(self.mesh, self.spec.model, spec)
        previous = None
        if spec.diagnostics != "off":
            previous = steps.Previous(params, params if spec.diagnostics == "successive" else None)
        return steps.TrainState(params, state, params if spec.weight_average else None, previous)


# A process that trains many runs compiles what they share once, and forgets what it has not used for long.
compiled = functools.lru_cache(maxsize=16)(Compiled)


class Programs:
    """The programs of a plan, with its hyperparameters filled in."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.compiled: Compiled = compiled(plan.program)
        self.mesh = self.compiled.mesh
        self.hyperparams = sharding.put(optim.HyperParams.from_floats(**plan.hyperparams), self.compiled.replicated)
        self._learning_rates: tuple[int, np.ndarray] = -1, np.zeros(0)

    @property
    def abstract_state(self) -> steps.TrainState:
        return self.compiled.abstract_state

    @property
    def compiled_chunk(self):
        return self.compiled.chunk

    def init(self) -> steps.TrainState:
        """Return the state before the first update."""
        return self.compiled.init(self.hyperparams)

    def put_tokens(self, sequences: sharding.Sequences, first: int, updates: int) -> jax.Array:
        """Put the batches of up to K updates on the devices (see `sharding.staged`)."""
        return sharding.staged(self.compiled.tokens_shape, self.compiled.tokens_sharding, sequences, first, updates)

    def update(self, state: steps.TrainState, tokens: jax.Array, updates: int):
        """Return the state after `updates` updates on staged tokens, and their metrics; `state` is used up."""
        count = sharding.put(np.int32(updates), self.compiled.replicated)
        return self.compiled_chunk(state, self.hyperparams, tokens, count)

    def evaluation_params(self, state: steps.TrainState) -> decoder.Params:
        """Return what a run is scored with: its parameters, not copied, but for schedule-free optimizers."""
        if "interpolation" in OPTIMIZER_KEYS[self.plan.optimizer.name]:
            return self.compiled.interpolated_params(self.hyperparams, state)
        return state.params

    def averaged_params(self, state: steps.TrainState) -> decoder.Params | None:
        """Return the average of the weights, if one is kept."""
        return None if state.weight_average is None else self.compiled.averaged_params(self.hyperparams, state)

    def score(self, params: decoder.Params, tokens_BxT1: np.ndarray, weights_BxT: np.ndarray) -> jax.Array:
        """Return the weighted sum of losses in nats of each sequence of one validation batch, [A, M]."""
        split = sharding.batch_sharding(self.mesh, 1)
        parts = lambda x_BxT: x_BxT.reshape(-1, self.plan.validation_microbatch_seqs, x_BxT.shape[1])
        staged = (sharding.put(parts(x), split) for x in (tokens_BxT1, weights_BxT))
        return self.compiled.score(params, *staged)

    def learning_rate(self, update: int) -> float:
        """Return the learning rate of an update, 0 first."""
        block, place = divmod(update, LEARNING_RATES)
        if self._learning_rates[0] != block:
            counts = jnp.arange(block * LEARNING_RATES, (block + 1) * LEARNING_RATES, dtype=jnp.int32)
            self._learning_rates = block, np.asarray(self.compiled.learning_rate(self.hyperparams, counts))
        return float(self._learning_rates[1][place])

    def check_memory(self, with_updates: bool = False) -> None:
        """Raise UserError if the state, or an update (which is compiled for this), does not fit.

        XLA's CPU backend waits for ever where it gets no memory.
        """
        what, needed = "the weights and the optimizer's state take", bytes_per_device(self.abstract_state)
        if with_updates:
            what, needed = "an update takes", self.compiled.memory().total_bytes
        if too_much := over_memory(needed, self.mesh):
            raise UserError(f"{what} {too_much}; {LESS_MEMORY}")


def device_memory_bytes(device) -> int | None:
    """Return the memory of a device, or of the machine where the CPU is the device; None if it does not say."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (device.memory_stats() or {}).get("bytes_limit")


def over_memory(device_bytes: int, mesh, most_frac: float = 1.0) -> str:
    """Say how much it is and what there is, if each device of a mesh needs more than a share of its memory; else ""."""
    here = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    needed = device_bytes * (len(here) if here[0].platform == "cpu" else 1)  # cores share the machine's memory
    limit = device_memory_bytes(here[0])
    if limit is None or needed <= most_frac * limit:
        return ""
    return f"{format_bytes(needed)}, and there are {format_bytes(limit)}"


def bytes_per_device(tree) -> int:
    """Return what one device holds of a pytree of arrays, or of their shapes, with shardings."""
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))
