"""Predict the memory per device of an update, by optimizer and batch size, and with accumulation or LoRA.

Uses XLA's memory analysis of the compiled programs of `smallbatch.train`; nothing is allocated. The mesh is one device
unless the config sets `mesh`. The LoRA row is an estimate: the weights, the activations of SGD, and adapters of
--lora_rank on every matrix of the blocks, with Adam's 16 bytes per adapter parameter.
"""

from dataclasses import replace

from smallbatch.config import cli
from smallbatch.config.key_types import Interval, Key
from smallbatch.optim import OPTIMIZERS

ADAM_BYTES = 16  # a float32 parameter, its gradient and two moments


FLAGS = (
    Key("--optimizers", ("sgd", "adafactor", "momentum", "adam"), str, "optimizers to compare", tuple(OPTIMIZERS)),
    Key("--batch_sizes", (1, 16), int, "sequences per update", Interval(1, 2**16)),
    Key("--topology", None, str, "TPU slice to compile for, such as v5e:2x4; needs no TPU"),
    Key("--lora_rank", 16, int, "rank of the LoRA adapters", Interval(1, 2**16)),
)


def main(config, flags) -> None:
    sizes = flags.batch_sizes
    from smallbatch.plan import flops, mesh_plan
    from smallbatch.runs.progress import format_bytes, log
    from smallbatch.training import run
    from smallbatch.training.program import Memory, train_program

    def memory(optimizer: str, batch_size: int, microbatch_size: int) -> Memory:
        log(f"compiling {optimizer}, batch {batch_size} ...")
        config.train.batch_size, config.train.microbatch_size = batch_size, microbatch_size
        config.train.budget_tokens = batch_size * config.model.context_tokens
        plan = run.make_plan(config, flags.topology)
        if optimizer == "lora":  # accumulation needs memory only for the adapters' gradients
            adapters = (
                ADAM_BYTES * flops.lora_params(plan.model, flags.lora_rank) // (plan.mesh.fsdp * plan.mesh.tensor)
            )
            return replace(memory("sgd", microbatch_size, microbatch_size), optimizer_state_bytes=adapters)
        optimizer_spec = replace(plan.optimizer, name=optimizer, nesterov=False)
        spec = replace(plan.program(), optimizer=optimizer_spec, steps_per_dispatch=1, topology=flags.topology)
        return train_program(spec).memory()

    # Use the same mesh for all batch sizes, so that they are comparable.
    mesh = config.mesh
    mesh.data, mesh.tensor = mesh.data or 1, mesh.tensor or 1
    mesh.cpu_devices = mesh.cpu_devices or mesh_plan.least_mesh(mesh).devices
    columns = [(size, size) for size in sizes] + ([(sizes[-1], sizes[0])] if sizes[-1] > sizes[0] else [])
    config.train.batch_size = config.train.microbatch_size = sizes[0]
    config.train.budget_tokens = sizes[0] * config.model.context_tokens
    plan = run.make_plan(config, flags.topology)
    print(
        f"{plan.params:,} parameters in {plan.model.param_dtype}, computation {plan.model.compute_dtype}, context "
        f"{plan.model.context_tokens}, remat {plan.model.remat}; bytes on each of "
        f"{plan.mesh.devices} {plan.platform} device{'s' * (plan.mesh.devices > 1)} ({plan.mesh})"
    )
    heads = [f"batch {size}" if size == part else f"{size} in {size // part} parts" for size, part in columns]
    print(f"{'':<20}{'weights + state':>16}" + "".join(f"{head:>16}" for head in heads))
    for optimizer in [*flags.optimizers, "lora"]:
        found = [memory(optimizer, *column) for column in columns]
        fixed = found[0].params_bytes + found[0].optimizer_state_bytes
        name = f"lora, rank {flags.lora_rank}" if optimizer == "lora" else optimizer
        cells = [format_bytes(n) for n in (fixed, *(one.total_bytes for one in found))]
        print(f"{name:<20}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    cli.run(main, FLAGS)
