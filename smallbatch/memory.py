"""Predict the memory of an update on one device: optimizers x batch sizes, compared with accumulation and LoRA.

Uses XLA's memory analysis of the compiled programs of `smallbatch.train`; nothing of that size is allocated. The mesh
is one device unless the config sets `mesh`. The LoRA row is an estimate: the weights, the activations of SGD, and
adapters of --lora_rank on every matrix of the blocks, with Adam's 16 bytes per adapter parameter.
"""

from smallbatch.config import cli
from smallbatch.config.key_types import Interval, Key
from smallbatch.optim import OPTIMIZERS

FLAGS = (
    Key("--optimizers", ("sgd", "adafactor", "momentum", "adam"), str, "optimizers to compare", tuple(OPTIMIZERS)),
    Key("--batch_sizes", (1, 16), int, "sequences per update", Interval(1, 2**16)),
    Key("--topology", None, str, "a TPU slice to compile for, such as v5e:2x4, which need not exist here"),
    Key("--lora_rank", 16, int, "rank of the LoRA adapters", Interval(1, 2**16)),
)


def main(config, flags) -> None:
    from smallbatch.training.memory_table import memory_table

    for line in memory_table(config, flags.optimizers, flags.batch_sizes, flags.topology, flags.lora_rank):
        print(line, flush=True)


if __name__ == "__main__":
    cli.run(main, FLAGS)
