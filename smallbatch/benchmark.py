"""Measure training speed per batch size: tokens/s, GFLOP/s, and the share of this machine's matrix-product peak.

Runs the compiled programs of `smallbatch.train`, on random tokens, with the model and optimizer of the config, in one
process. The peak is measured first, in the compute dtype and at its precision. MFU is relative to the bfloat16 peak of
the device's data sheet.
"""

from smallbatch.config import cli
from smallbatch.config.key_types import Interval, Key
from smallbatch.errors import UserError

FLAGS = (
    Key("--batch_sizes", (1, 4, 16), int, "sequences per update", Interval(1, 2**16)),
    Key("--secs", 5.0, float, "seconds to measure each batch size", Interval(0.1, 86_400)),
)


def main(config, flags) -> None:
    from smallbatch.training import distributed, run, speed

    # Several processes with separate clocks would stop at different dispatches and deadlock.
    if distributed.is_one_of_several():
        raise UserError("the benchmark measures a single process, and this is one of several; start it as one task")
    peak_flops = None
    for batch_size in flags.batch_sizes:
        config.train.batch_size, config.train.microbatch_size = batch_size, None
        config.train.budget_tokens = batch_size * config.model.context_tokens * 1000
        plan = run.make_plan(config)
        if peak_flops is None:
            peak_flops = speed.matmul_peak_flops(plan.program())
            model = f"{plan.params:,} parameters, {plan.optimizer.name}, context {plan.model.context_tokens}"
            print(f"{model}, matrix-product peak {peak_flops / 1e9:,.0f} GFLOP/s", flush=True)
        print(speed.benchmark_line(plan, flags.secs, peak_flops), flush=True)


if __name__ == "__main__":
    cli.run(main, FLAGS)
