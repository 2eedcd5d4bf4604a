"""Measure training speed per batch size: tokens/s, GFLOP/s, and the share of this machine's matrix-product peak.

Runs the compiled programs of `smallbatch.train`, on random tokens, with the model and optimizer of the config, in one
process. The peak is measured first, in the compute dtype and precision of the config. MFU is relative to the bfloat16
peak in the device's data sheet.
"""

import time

from smallbatch.config import cli
from smallbatch.config.key_types import Interval, Key
from smallbatch.errors import UserError
from smallbatch.plan.plan import Plan
from smallbatch.specs import ProgramSpec

FLAGS = (
    Key("--batch_sizes", (1, 4, 16), int, "sequences per update", Interval(1, 2**16)),
    Key("--secs", 5.0, float, "seconds to measure each batch size", Interval(0.1, 86_400)),
)


def main(config, flags) -> None:
    import jax

    from smallbatch.plan import device_flops
    from smallbatch.training import distributed, run
    from smallbatch.training.program import train_program

    # Several processes with separate clocks would stop at different dispatches and deadlock.
    if distributed.is_one_of_several():
        raise UserError("the benchmark measures a single process, and this is one of several; start it as one task")
    peak = None
    for batch_size in flags.batch_sizes:
        config.train.batch_size, config.train.microbatch_size = batch_size, None
        config.train.budget_tokens = batch_size * config.model.context_tokens * 1000
        plan = run.make_plan(config)
        if peak is None:
            peak = matmul_peak_flops(plan.program())
            print(
                f"{plan.params:,} parameters, {plan.optimizer.name}, context {plan.model.context_tokens}, "
                f"matrix-product peak {peak / 1e9:,.0f} GFLOP/s",
                flush=True,
            )
        tokens_per_sec = measure(train_program(plan.program()), plan, flags.secs)
        flops = tokens_per_sec * plan.flops_per_token
        mfu = device_flops.mfu(flops, jax.local_devices()[0].device_kind, plan.mesh.devices)
        peak_of_mesh = peak if plan.platform == "cpu" else peak * plan.mesh.devices
        print(
            f"batch {batch_size:>5}  {tokens_per_sec:>10,.0f} tokens/s  {flops / 1e9:>10,.1f} GFLOP/s  "
            f"{flops / peak_of_mesh:>5.0%} of the peak  "
            f"{'' if mfu is None else f'MFU {mfu:.1%}  '}devices: {plan.mesh}",
            flush=True,
        )


def measure(program, plan: Plan, secs: float) -> float:
    """Return tokens per second over full dispatches of a `TrainProgram`, after two warm-up dispatches."""
    import numpy as np

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
    import jax
    import jax.numpy as jnp

    from smallbatch.training.program import jit_of

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


if __name__ == "__main__":
    cli.run(main, FLAGS)
