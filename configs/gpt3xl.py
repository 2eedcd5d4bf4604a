"""GPT-3 XL of Marek et al. 2025 (arXiv 2507.07101), Figure 6: 1.3B parameters, batch size 1 against 512.

Question: do the results at 124M parameters hold at 1.3B, with transferred instead of tuned learning rates?
Run:      python -m smallbatch.train --config=configs/gpt3xl.py:adam1
          or adamw512, sgd1, adam1_b2_fixed, adafactor1, adafactor_power1
          python -m smallbatch.sweep --config=configs/gpt3xl.py:headline
          or the other grid under Cost
Data:     FineWeb with the GPT-2 vocabulary. Twenty files of its 100BT sample are enough (14B tokens, 43 GB):
            hf download HuggingFaceFW/fineweb --include 'sample/100BT/000_000[01]?.parquet' \\
                --repo-type dataset --local-dir data/fineweb
            hf download openai-community/gpt2 tokenizer.json --local-dir data/gpt2
Size:     1.3B active parameters, 1.21B in the blocks and 0.10B in one of two embeddings; 1.41B in total.
Cost:     a run: 10.0B tokens, 9,536 steps at batch size 512 and 4,882,432 at 1, 9.07e19 FLOPs; 400 TPU v4
          chip-hours in the paper (4,400 for 11 runs). Weights and Adam's averages are 17 GB in float32;
          --config.mesh.tensor=N shards them over N devices, and so does --config.mesh.fsdp=N at batch size 512.
            grid              runs  tokens    FLOPs
            headline            11    110B  9.98e20
            adafactor_power      4   40.0B  3.63e20
Grids:    headline: adam1, adam1_b2_fixed and adamw512; sgd1 and adafactor1 at 4 learning rates a factor of 2 apart.
          adafactor_power: the Adafactor of the paper's code, which uses b2 = 0.9999 as the exponent c of
          1 - b2 = t^-c, at the same 4 learning rates. In adafactor1, b2 = 0.9999 is the decay itself.
          The values of single runs are from the script of the paper's code (github.com/martin-marek/batch-size). It
          has the best of the 4 learning rates (for Adafactor 0.0032, in a later version 0.012) but not the other 3,
          which are our choice.
Expect:   2.82 nats (adam1), 2.96 (adamw512), 2.99 (sgd1, with spikes before 3B tokens), 3.48 (adam1_b2_fixed), 2.81
          (adafactor_power1), read off Figure 6 to 0.02; no number is published for adafactor1. Figure 6 shows the mean
          training loss at the end, so compare train_loss_nats. adamw512 is a weak baseline: it has the learning rate
          of GPT-3, untuned, and no gradient clipping.
"""

from smallbatch import config
from smallbatch.grid import Grid, chain, multiplied, point

VARIANTS = {
    "adam1": {"batch_size": 1, "name": "adam", "peak_lr": 6.7e-5, "b1": 0.9, "b2": 0.9999},
    "adam1_b2_fixed": {"batch_size": 1, "name": "adam", "peak_lr": 6.7e-5, "b1": 0.9, "b2": 0.95},
    "adamw512": {"batch_size": 512, "name": "adam", "peak_lr": 2e-4, "b1": 0.9, "b2": 0.95, "weight_decay": 0.1},
    "sgd1": {"batch_size": 1, "name": "sgd", "peak_lr": 0.15},
    "adafactor1": {"batch_size": 1, "name": "adafactor", "peak_lr": 0.0032, "b2": 0.9999},
    "adafactor_power1": {"batch_size": 1, "name": "adafactor_power", "peak_lr": 0.0032, "decay_exponent": 0.9999},
}
LARGEST_STEP_TOKENS = 512 * 2048


def get_config(name: str = "adam1") -> config.Config:
    c = config.base()
    optimizer = dict(config.variant(name, VARIANTS | dict.fromkeys(GRIDS, VARIANTS["adam1"])))
    c.train.batch_size = batch_size = optimizer.pop("batch_size")
    c.optimizer.update(optimizer)
    c.optimizer.warmup_frac = 0.05

    c.data.source = "text:data/fineweb/sample/100BT/*.parquet"
    c.data.tokenizer = "file:data/gpt2/tokenizer.json"
    c.data.validation_frac = 0.0025
    c.data.validation_max_bytes = 90_000_000  # about the paper's 20M tokens

    c.model.width = 2048
    c.model.layers = 24
    c.model.head_width = 128
    c.model.context_tokens = 2048
    c.model.remat = "full"

    c.train.microbatch_size = min(batch_size, 16)
    c.train.budget_tokens = 9536 * LARGEST_STEP_TOKENS
    c.train.log_every_tokens = 2**21
    c.train.sample_prompt = "The most important thing about"
    return c


def get_grid(name: str = "headline") -> Grid:
    return chain(*(_method(VARIANTS[variant], factors) for variant, factors in config.variant(name, GRIDS).items()))


def _method(method: dict, factors: tuple[float, ...]) -> Grid:
    unset = dict.fromkeys(("optimizer.b1", "optimizer.b2"))
    named = {f"optimizer.{key}": value for key, value in method.items() if key != "batch_size"}
    sizes = {"train.batch_size": method["batch_size"], "train.microbatch_size": min(method["batch_size"], 16)}
    return multiplied(point(unset | {"optimizer.weight_decay": 0.0} | named | sizes), "optimizer.peak_lr", factors)


PUBLISHED, TRIED = (1.0,), (0.5, 1.0, 2.0, 4.0)  # factors of the learning rate above
GRIDS = {
    "headline": {
        **dict.fromkeys(("adam1", "adam1_b2_fixed", "adamw512"), PUBLISHED),
        **dict.fromkeys(("sgd1", "adafactor1"), TRIED),
    },
    "adafactor_power": {"adafactor_power1": TRIED},
}
