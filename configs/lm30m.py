"""The 30M model of Marek et al. 2025 (arXiv 2507.07101), Figures 1a, 3 and 4: a tuned run, or a grid of them.

Question: is batch size 1 as good as any other, once the second moment's half-life is fixed in tokens?
Run:      python -m smallbatch.train --config=configs/lm30m.py:16
          16 is the batch size: 1, 4, 16, 64, 256, 1024 or 4096
          python -m smallbatch.sweep --config=configs/lm30m.py:adam
          adam, adafactor, muon, sgd (figure 1a: 2,100, 210, 700 and 100 runs, 3,110 in all); sensitivity (figure 3:
          one of learning rate, t1, t2 off by up to 8, 7 seeds, 1,813 runs); learning_rate, t1, t2 (its parts);
          b1, b2 (the same search over decays per step, one seed). Centres and counts are the paper's, and so
          are the ranges of the sensitivity grid; where it names no ranges (figure 1a) they are ours.
Data:     FineWeb-Edu with the GPT-2 vocabulary. One file of its 10BT sample is enough (0.7B tokens, 2 GB):
            hf download HuggingFaceFW/fineweb-edu sample/10BT/000_00000.parquet --repo-type dataset \\
                --local-dir data/fineweb-edu
            hf download openai-community/gpt2 tokenizer.json --local-dir data/gpt2
          A flat file of GPT-2 tokens works as well: --config.data.source=tokens:train.bin
          --config.data.tokens_vocab_size=50257 --config.data.tokenizer=bytes
Size:     30M counts active parameters: 10.6M in the blocks and 19.3M in one of two embeddings; 49M in all.
Cost:     598M tokens (20 per active parameter), 285 steps at batch size 4096 and 1,167,360 at 1, 1.2e17
          FLOPs; 24 minutes on one TPU v4 chip in the paper, at batch sizes that keep it busy (4,600 chip-hours
          for 11,521 runs).
Expect:   validation loss 3.69 nats (batch size 1), 3.73 (4, 16, 64), 3.75 (256), 3.94 (1024), above 4.9
          (4096), read off Figure 1a. The paper scores each batch size on another validation set, we do not,
          and its code starts from smaller weights: compare the differences, not the third digit. Best of the
          grids at batch size 1: SGD 3.82, Adafactor 3.69, Adam 3.69, Muon 3.66; at 256: Adafactor 4.00, Adam
          3.75, Muon 3.72. Sensitivity, rise of the loss for a learning rate 8 x too small: 0.025 (1), 0.16 (16),
          0.31 (256). The paper's Adafactor is our adafactor_power; ours keeps the half-life it is given.
"""

from smallbatch import config
from smallbatch.grid import Grid, axis, by_batch_size, chain, multiplied, point, product, seeds

TUNED_LR = {"1": 0.0017, "4": 0.002, "16": 0.002, "64": 0.003, "256": 0.005, "1024": 0.005, "4096": 0.0025}
TUNED_T1_TOKENS = {1: 4e4, 4: 4e4, 16: 6e4, 64: 2e5, 256: 1e6, 1024: 3e6, 4096: 6e6}
LARGEST_STEP_TOKENS = 4096 * 512
BATCH_SIZES = tuple(map(int, TUNED_LR))
LR, B1, T1, B2, T2 = (f"optimizer.{name}" for name in ("peak_lr", "b1", "t1_tokens", "b2", "t2_tokens"))
ADAM_LR = {size: TUNED_LR[str(size)] for size in BATCH_SIZES}
AROUND = tuple(2 ** (i / 2) for i in range(-6, 7))  # 1/8 to 8
DECAYS_1 = tuple(1 - 2.0**-i for i in range(10))  # 0 to 0.998


def get_config(variant: str = "16") -> config.Config:
    batch_size = "16" if variant in GRIDS else variant
    c = config.base()
    c.optimizer.peak_lr = config.variant(batch_size, TUNED_LR | dict.fromkeys(GRIDS, 0.0))
    c.optimizer.b1 = 0.9
    c.optimizer.t2_tokens = 10e6
    c.optimizer.warmup_frac = 0.05

    c.data.source = "text:data/fineweb-edu/sample/10BT/*.parquet"
    c.data.tokenizer = "file:data/gpt2/tokenizer.json"
    c.data.validation_frac = 0.03
    c.data.validation_max_bytes = 90_000_000  # about the paper's 20M tokens

    c.model.width = 384
    c.model.layers = 6
    c.model.head_width = 128
    c.model.context_tokens = 512

    c.train.batch_size = int(batch_size)
    c.train.microbatch_size = min(int(batch_size), 64)
    c.train.budget_tokens = 285 * LARGEST_STEP_TOKENS
    c.train.log_every_tokens = 2**19
    c.train.sample_prompt = "The most important thing about"
    return c


def get_grid(name: str = "adam") -> Grid:
    return config.variant(name, GRIDS)()


def _sizes(largest: int = 4096) -> Grid:
    sizes = axis("train.batch_size", [size for size in BATCH_SIZES if size <= largest])
    return by_batch_size(sizes, "train.microbatch_size", {size: min(size, 64) for size in BATCH_SIZES})


def _around(grid: Grid, centres: dict[int, float], count: int) -> Grid:
    """Return learning rates a factor of 2 apart, half of them above the centre."""
    return multiplied(by_batch_size(grid, LR, centres), LR, [2 ** (i - (count - 1) / 2) for i in range(count)])


def _adam() -> Grid:
    return product(_around(_sizes(), ADAM_LR, 6), axis(B1, DECAYS_1), axis(T2, [10e6 * 4.0**i for i in range(-2, 3)]))


def _adafactor() -> Grid:
    rates = dict.fromkeys(BATCH_SIZES, 0.01)  # relative to the size of the weights
    point_ = point({"optimizer.name": "adafactor", B1: None})
    return product(point_, _around(_sizes(), rates, 6), axis(T2, [10e6 * 4.0**i for i in range(-2, 3)]))


def _muon() -> Grid:
    sizes = by_batch_size(_sizes(), "optimizer.embed_lr", ADAM_LR)
    half_lives = multiplied(by_batch_size(sizes, T1, TUNED_T1_TOKENS), T1, [2 ** (i - 4.5) for i in range(10)])
    return product(
        point({"optimizer.name": "muon", B1: None}), _around(half_lives, dict.fromkeys(BATCH_SIZES, 0.01), 10)
    )


def _sgd() -> Grid:
    rates = dict.fromkeys(BATCH_SIZES, 0.2)
    fine = multiplied(_around(_sizes(256), rates, 10), LR, (1.0, 2**0.5))
    return product(point({"optimizer.name": "sgd", B1: None, T2: None}), fine)


def _tuned() -> Grid:
    centres = by_batch_size(by_batch_size(_sizes(), LR, ADAM_LR), T1, TUNED_T1_TOKENS)
    return product(point({B1: None}), centres, axis(T2, [10e6]))


def _sensitivity(*keys: str) -> Grid:
    """Return the tuned point, and every point where one of the keys is off by a factor: each once."""
    off = [factor for factor in AROUND if factor != 1]
    return product(chain(_tuned(), *(multiplied(_tuned(), key, off) for key in keys)), seeds(7))


GRIDS = {
    "adam": _adam,
    "adafactor": _adafactor,
    "muon": _muon,
    "sgd": _sgd,
    "sensitivity": lambda: _sensitivity(LR, T1, T2),
    "learning_rate": lambda: _sensitivity(LR),
    "t1": lambda: _sensitivity(T1),
    "t2": lambda: _sensitivity(T2),
    "b1": lambda: product(by_batch_size(_sizes(), LR, ADAM_LR), axis(B1, DECAYS_1)),
    "b2": lambda: product(
        point({T2: None}), by_batch_size(_sizes(), LR, ADAM_LR), axis(B2, [1 - 0.1 * 4.0**-i for i in range(9)])
    ),
}
