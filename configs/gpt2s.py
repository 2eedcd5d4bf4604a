"""GPT-2 small of Marek et al. 2025 (arXiv 2507.07101), Figures 1b and 6: batch size 1 against a tuned AdamW at 512.

Question: does batch size 1, with Adam or plain SGD, match a tuned AdamW at batch size 512?
Run:      python -m smallbatch.train --config=configs/gpt2s.py:adam1
          or adamw512, sgd1, adam1_b2_fixed, adafactor1, adafactor_power1
          python -m smallbatch.sweep --config=configs/gpt2s.py:optimizers
          or another grid under Cost
Data:     FineWeb with the GPT-2 vocabulary. Four files of its 10BT sample are enough (2.7B tokens, 9 GB):
            hf download HuggingFaceFW/fineweb --include 'sample/10BT/00[0-3]_00000.parquet' \\
                --repo-type dataset --local-dir data/fineweb
            hf download openai-community/gpt2 tokenizer.json --local-dir data/gpt2
Size:     124M active parameters, 85M in the blocks and 39M in one of two embeddings; 162M in total.
Cost:     a run: 2.47B tokens (20 per active parameter), 4,712 steps at batch size 512 and 2,412,544 at 1, 2.11e18
          FLOPs; 7.5 TPU v4 chip-hours in the paper (2,640 for 352 runs).
            grid              runs  tokens    FLOPs
            optimizers          40   98.8B  8.44e19
            adafactor_power      8   19.8B  1.69e19
            lr_beta1           312    771B  6.59e20
Grids:    optimizers: Figure 6, adam1, adam1_b2_fixed, adamw512, sgd1 and adafactor1 at 8 learning rates each.
          adafactor_power: the Adafactor of the paper's code, which uses b2 = 0.9999 as the exponent c of
          1 - b2 = t^-c. In adafactor1, b2 = 0.9999 is the decay itself.
          lr_beta1: Figure 1b, 13 learning rates x 12 decays b1 at batch sizes 1 and 512, t2 = 10M tokens.
          Values are from the run files of the paper's code (github.com/martin-marek/batch-size), except the smallest
          learning rate of SGD, where a file has 0.06 instead of 0.006.
Expect:   3.38 nats (adam1), 3.40 to 3.41 (adamw512), 3.52 (sgd1), 4.40 (adam1_b2_fixed), 3.37 (adafactor_power1),
          read off Figure 6 to 0.02; no number is published for adafactor1. Figure 6 shows the mean training loss at
          the end, so compare train_loss_nats. Figure 1b: at batch size 1, all 156 cells are between 3.38 and 3.42; at
          batch size 512, 60 cells are below 3.60 and the best is 3.43.
"""

from smallbatch import config
from smallbatch.grid import Grid, axis, by_batch_size, chain, multiplied, point, product

VARIANTS = {
    "adam1": {"batch_size": 1, "name": "adam", "peak_lr": 0.0024, "b1": 0.9, "b2": 0.9999},
    "adam1_b2_fixed": {"batch_size": 1, "name": "adam", "peak_lr": 0.00015, "b1": 0.9, "b2": 0.95},
    "adamw512": {"batch_size": 512, "name": "adam", "peak_lr": 0.0048, "b1": 0.9, "b2": 0.95, "weight_decay": 0.1},
    "sgd1": {"batch_size": 1, "name": "sgd", "peak_lr": 0.2},
    "adafactor1": {"batch_size": 1, "name": "adafactor", "peak_lr": 0.005, "b2": 0.9999},
    "adafactor_power1": {"batch_size": 1, "name": "adafactor_power", "peak_lr": 0.005, "decay_exponent": 0.9999},
}
# Searched learning rates, which include the tuned ones above.
ADAM_LR = (0.000075, 0.00015, 0.0003, 0.0006, 0.0012, 0.0024, 0.0048, 0.01)
ADAFACTOR_LR = (0.0003, 0.0006, 0.0012, 0.0025, 0.005, 0.01, 0.02, 0.04)
PEAK_LRS = {
    "adam1": ADAM_LR,
    "adam1_b2_fixed": ADAM_LR,
    "adamw512": (0.00015, 0.0003, 0.0006, 0.0012, 0.0024, 0.0048, 0.01, 0.02),
    "sgd1": (0.006, 0.012, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8),
    "adafactor1": ADAFACTOR_LR,
    "adafactor_power1": ADAFACTOR_LR,
}
B1 = (0.0, 0.5, 0.68913, 0.81873, 0.89814, 0.94393, 0.96948, 0.98349, 0.9911, 0.99521, 0.99742, 0.99861)
LARGEST_STEP_TOKENS = 512 * 1024


def get_config(name: str = "adam1") -> config.Config:
    c = config.base()
    known = VARIANTS | dict.fromkeys(GRIDS, VARIANTS["adam1"])
    optimizer = dict(config.variant(name, known))
    c.train.batch_size = batch_size = optimizer.pop("batch_size")
    c.optimizer.update(optimizer)
    c.optimizer.warmup_frac = 0.05

    c.data.source = "text:data/fineweb/sample/10BT/*.parquet"
    c.data.tokenizer = "file:data/gpt2/tokenizer.json"
    c.data.validation_frac = 0.01
    c.data.validation_max_bytes = 90_000_000  # about the paper's 20M tokens

    c.model.width = 768
    c.model.layers = 12
    c.model.head_width = 128
    c.model.context_tokens = 1024

    c.train.microbatch_size = min(batch_size, 16)
    c.train.budget_tokens = 4712 * LARGEST_STEP_TOKENS
    c.train.log_every_tokens = 2**20
    c.train.sample_prompt = "The most important thing about"
    return c


def get_grid(name: str = "optimizers") -> Grid:
    return config.variant(name, GRIDS)()


def _methods(*names: str) -> Grid:
    return chain(*(_method(VARIANTS[name], PEAK_LRS[name]) for name in names))


def _method(method: dict, peak_lrs: tuple[float, ...]) -> Grid:
    unset = dict.fromkeys(("optimizer.b1", "optimizer.b2"))
    named = {f"optimizer.{key}": value for key, value in method.items() if key not in ("batch_size", "peak_lr")}
    sizes = {"train.batch_size": method["batch_size"], "train.microbatch_size": min(method["batch_size"], 16)}
    return product(point(unset | {"optimizer.weight_decay": 0.0} | named | sizes), axis("optimizer.peak_lr", peak_lrs))


def _lr_beta1() -> Grid:
    sizes = by_batch_size(axis("train.batch_size", [1, 512]), "train.microbatch_size", {1: 1, 512: 16})
    centers = by_batch_size(sizes, "optimizer.peak_lr", {1: 2.0**-11, 512: 2.0**-8})
    rates = multiplied(centers, "optimizer.peak_lr", [2 ** (i / 2) for i in range(-6, 7)])
    # The paper uses weight decay at batch size 512 only.
    decayed = by_batch_size(rates, "optimizer.weight_decay", {1: 0.0, 512: 0.1})
    fixed = point({"optimizer.b2": None, "optimizer.t2_tokens": 10e6})
    return product(fixed, decayed, axis("optimizer.b1", B1))


GRIDS = {
    "optimizers": lambda: _methods("adam1", "adam1_b2_fixed", "adamw512", "sgd1", "adafactor1"),
    "adafactor_power": lambda: _methods("adafactor_power1"),
    "lr_beta1": _lr_beta1,
}
