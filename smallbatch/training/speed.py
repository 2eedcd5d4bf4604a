"""Measure the speed of a training program and of this machine's matrix products."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from smallbatch.plan import device_flops
from smallbatch.plan.plan import Plan
from smallbatch.specs import ProgramSpec
from smallbatch.training.program import TrainProgram, jit_of, train_program


def benchmark_line(plan: Plan, secs: float, peak_flops: float) -> str:
    """Return a line with tokens/s, FLOP/s and the share of the peak, measured for about `secs`.

    peak_flops: measured FLOP/s of a matrix product on one device, or on all cores of a CPU.
    """
    tokens_per_sec = measure(train_program(plan.program()), plan, secs)
    flops = tokens_per_sec * plan.flops_per_token
    mfu = device_flops.mfu(flops, jax.local_devices()[0].device_kind, plan.mesh.devices)
    share = flops / peak_flops / (1 if plan.platform == "cpu" else plan.mesh.devices)
    mfu_text = "" if mfu is None else f"MFU {mfu:.1%}  "
    return (
        f"batch {plan.first.batch_size:>5}  {tokens_per_sec:>10,.0f} tokens/s  {flops / 1e9:>10,.1f} GFLOP/s  "
        f"{share:>5.0%} of the peak  {mfu_text}devices: {plan.mesh}"
    )


def measure(program: TrainProgram, plan: Plan, secs: float) -> float:
    """Return tokens per second over full dispatches of a `TrainProgram`, after two that are not measured."""
    updates = plan.first.steps_per_dispatch
    shape = (updates * plan.first.batch_size, plan.model.context_tokens + 1)
    tokens = np.random.default_rng(0).integers(plan.model.vocab_size, size=shape, dtype=np.int32)
    sequences = lambda first, count: tokens[first : first + count]
    hyperparams = program.put_hyperparams([plan.first.hyperparams])
    state = program.init(hyperparams)

    def dispatch():
        nonlocal state
        state, metrics = program.train(state, hyperparams, program.put_tokens(sequences, 0, updates), updates)
        return metrics["loss"]

    for _ in range(2):
        np.asarray(dispatch())  # waits for the result
    dispatches, start = 1, time.perf_counter()
    pending = dispatch()
    while time.perf_counter() - start < secs:
        following = dispatch()  # before waiting for the pending one, as the trainer does
        np.asarray(pending)
        pending, dispatches = following, dispatches + 1
    np.asarray(pending)
    return dispatches * updates * plan.first.tokens_per_step / (time.perf_counter() - start)


def matmul_peak_flops(program: ProgramSpec, size: int | None = None, secs: float = 1.0) -> float:
    """Return the best measured FLOP/s of a square matrix product on the first device (on a CPU, with all its cores).

    The product has the program's compute dtype, precision and compiler options; JAX's default on a GPU would be TF32.
    """
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jnp.ones((size, size), program.model.compute_dtype)
    product = jit_of(program, jnp.matmul)
    product(a, a).block_until_ready()
    best, stop = 0.0, time.perf_counter() + secs
    while time.perf_counter() < stop:
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
