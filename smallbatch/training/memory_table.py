"""The memory of an update by optimizer and batch size, from XLA's analysis of the compiled programs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from smallbatch.config import Config
from smallbatch.plan import flops, mesh_plan
from smallbatch.runs.progress import format_bytes, log
from smallbatch.training import run
from smallbatch.training.program import Memory, train_program

ADAM_BYTES = 16  # a float32 parameter, its gradient and two averages


def memory_table(
    config: Config, optimizers: Sequence[str], batch_sizes: Sequence[int], topology: str | None, lora_rank: int
) -> Iterator[str]:
    """Yield the lines of a table: one row per optimizer and one for LoRA, one column per batch size.

    The last column is the largest batch size, accumulated in parts of the smallest.
    """
    mesh = config.mesh  # the same for all batch sizes, so that they are comparable
    mesh.data, mesh.tensor = mesh.data or 1, mesh.tensor or 1
    mesh.cpu_devices = mesh.cpu_devices or mesh_plan.least_mesh(mesh).devices
    small, large = batch_sizes[0], batch_sizes[-1]
    columns = [(size, size) for size in batch_sizes] + ([(large, small)] if large > small else [])
    plan = _plan(config, small, small, topology)
    yield (
        f"{plan.params:,} parameters in {plan.model.param_dtype}, computation {plan.model.compute_dtype}, context "
        f"{plan.model.context_tokens}, remat {plan.model.remat}; bytes on each of {plan.mesh.devices} {plan.platform} "
        f"device{'s' * (plan.mesh.devices > 1)} ({plan.mesh})"
    )
    heads = [f"batch {size}" if size == part else f"{size} in {size // part} parts" for size, part in columns]
    yield f"{'':<20}{'weights + state':>16}" + "".join(f"{head:>16}" for head in heads)
    for optimizer in optimizers:
        yield _row(optimizer, [_memory(config, optimizer, *column, topology) for column in columns])
    adapters_bytes = ADAM_BYTES * flops.lora_params(plan.model, lora_rank) // (plan.mesh.fsdp * plan.mesh.tensor)
    # Only the gradients of adapters are accumulated, so accumulation needs the memory of one part.
    sgd = [_memory(config, "sgd", part, part, topology) for _, part in columns]
    yield _row(f"lora, rank {lora_rank}", [replace(one, optimizer_state_bytes=adapters_bytes) for one in sgd])


def _plan(config: Config, batch_size: int, microbatch_size: int, topology: str | None):
    config.train.batch_size, config.train.microbatch_size = batch_size, microbatch_size
    config.train.budget_tokens = batch_size * config.model.context_tokens
    return run.make_plan(config, topology)


def _memory(config: Config, optimizer: str, batch_size: int, microbatch_size: int, topology: str | None) -> Memory:
    log(f"compiling {optimizer}, batch {batch_size} ...")
    plan = _plan(config, batch_size, microbatch_size, topology)
    spec = replace(plan.optimizer, name=optimizer, nesterov=False)
    return train_program(replace(plan.program(), optimizer=spec, steps_per_dispatch=1, topology=topology)).memory()


def _row(name: str, memories: Sequence[Memory]) -> str:
    weights_and_state = memories[0].params_bytes + memories[0].optimizer_state_bytes
    sizes = (weights_and_state, *(memory.total_bytes for memory in memories))
    return f"{name:<20}" + "".join(f"{format_bytes(size):>16}" for size in sizes)
