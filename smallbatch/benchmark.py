"""Measure training speed per batch size: tokens/s, GFLOP/s, and the share of this machine's matrix-product peak.

Runs the very programs that `smallbatch.train` runs, on random tokens, for the model and optimizer of the config. The
peak is measured in the same process, in the compute dtype and at its precision, just before; MFU is of the data
sheet's bfloat16 peak. One process, with all its devices, is measured.
"""

import time

from absl import flags as absl_flags

from smallbatch.config import cli
from smallbatch.errors import UserError
from smallbatch.specs import ProgramSpec


def define_flags(flags) -> None:
    absl_flags.DEFINE_list("batch_sizes", ["1", "4", "16"], "sequences per update", flag_values=flags)
    cli.number(flags, "secs", 5.0, "seconds to measure each batch size", 0.1, 86_400.0)


def main(config, flags) -> None:
    batch_sizes = cli.whole_numbers("batch_sizes", flags.batch_sizes, "1,4,16")
    import jax

    from smallbatch.plan import device_flops as peaks
    from smallbatch.training import distributed, run
    from smallbatch.training.program import Programs

    # Several processes, each with its own clock, would stop at different dispatches and wait for each other for ever.
    if distributed.is_one_of_several():
        raise UserError("the benchmark measures a single process, and this is one of several; start it as one task")
    peak = None
    for batch_size in batch_sizes:
        config.train.batch_size, config.train.microbatch_size = batch_size, None
        config.train.budget_tokens = batch_size * config.model.context_tokens * 1000
        plan = run.make_plan(config)
        if peak is None:
            peak = matmul_peak_flops(plan.program)
            print(f"{plan.params:,} parameters, {plan.optimizer.name}, context {plan.model.context_tokens}, "
                  f"matrix-product peak {peak / 1e9:,.0f} GFLOP/s", flush=True)  # fmt: skip
        tokens_per_sec = measure(Programs(plan), flags.secs)
        flops = tokens_per_sec * plan.flops_per_token
        mfu = peaks.mfu(flops, jax.local_devices()[0].device_kind, plan.mesh.devices)
        print(f"batch {batch_size:>5}  {tokens_per_sec:>10,.0f} tokens/s  {flops / 1e9:>10,.1f} GFLOP/s  "
              f"{flops / peak / plan.mesh.devices if plan.platform != 'cpu' else flops / peak:>5.0%} of the peak  "
              f"{'' if mfu is None else f'MFU {mfu:.1%}  '}devices: {plan.mesh}", flush=True)  # fmt: skip


def measure(programs, secs: float) -> float:
    """Return tokens per second over full dispatches, after two of them that are not counted."""
    import numpy as np

    plan = programs.plan
    updates = plan.steps_per_dispatch
    shape = (updates * plan.batch_size, plan.model.context_tokens + 1)
    tokens = np.random.default_rng(0).integers(plan.model.vocab_size, size=shape, dtype=np.int32)
    sequences = lambda first, count: tokens[first : first + count]
    state = programs.init()

    def dispatch():
        nonlocal state
        state, metrics = programs.update(state, programs.put_tokens(sequences, 0, updates), updates)
        return metrics["loss"]

    for _ in range(2):
        np.asarray(dispatch())  # waits for it
    dispatches, start = 1, time.perf_counter()
    under_way = dispatch()
    while time.perf_counter() - start < secs:
        following = dispatch()  # before what is under way is waited for, as the trainer does
        np.asarray(under_way)
        under_way, dispatches = following, dispatches + 1
    np.asarray(under_way)
    return dispatches * updates * plan.tokens_per_step / (time.perf_counter() - start)


def matmul_peak_flops(program: ProgramSpec, size: int | None = None, secs: float = 1.0) -> float:
    """Return the best FLOP/s of square matrix products seen on the first device (on a CPU, with all its cores).

    In the program's compute dtype, at its precision and compiled as it is: JAX's own precision would be TF32 on a GPU.
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
    cli.run(main, define_flags)
