"""The 19M model of Marek et al. 2025 (arXiv 2507.07101), Figure 5: b2 fixed per token against b2 fixed per step.

Question: is a small batch size inherently worse, or only because b2 = 0.95 per step averages over too few tokens?
Run:      python -m smallbatch.train --config=configs/lm19m.py:16
          16 is the batch size: 16, 32, 64, 128, 256, 512 or 1024; for b2 fixed per step, add
          --config.optimizer.t2_tokens=None --config.optimizer.b2=0.95
          python -m smallbatch.sweep --config=configs/lm19m.py:arms
Data:     C4 with the T5 vocabulary. Six files of its English part are enough (0.9B tokens, 2 GB):
            hf download allenai/c4 --include 'en/c4-train.0000[0-5]-of-01024.json.gz' --repo-type dataset \\
                --local-dir data/c4
            for f in data/c4/en/*.json.gz; do gunzip -c $f > ${f%.json.gz}.jsonl; done
            hf download google-t5/t5-small tokenizer.json --local-dir data/t5
Size:     19M parameters in the blocks; 35M with one of two embeddings; 52M in total.
Cost:     a run: 706M tokens (20 per parameter of the 35M), 1,347 steps at batch size 1024 and 86,208 at 16, 1.63e17
          FLOPs; 25 minutes on one TPU v4 chip in the paper (525 chip-hours for 1,260 runs).
            grid     runs  tokens    FLOPs
            arms    1,260    890B  2.05e20
Grids:    arms: both rules for b2, all batch sizes, 18 learning rates a factor of 2 apart, which scale as batch
          size^0.25, and 5 seeds. Values are from the run files of the paper's code
          (github.com/martin-marek/batch-size).
Expect:   3.52 nats (16), 3.49 (128), 3.67 (1024) with t2 = 10M tokens; 3.69, 3.50, 3.67 with b2 = 0.95. The gap
          between 16 and 128 shrinks from 0.19 to 0.03. Read off Figure 5, best of 18 learning rates each. The learning
          rates of single runs are the optima for t2 = 10M at 16 and from 128 on, read off within a factor of 1.5, and
          interpolated at 32 and 64. A fair comparison of the two rules tunes the learning rate for both.
"""

from smallbatch import config
from smallbatch.grid import Grid, axis, by_batch_size, chain, multiplied, point, product, seeds

PEAK_LR = {"16": 0.001, "32": 0.0017, "64": 0.003, "128": 0.005, "256": 0.005, "512": 0.005, "1024": 0.005}
SCALED_LR = (  # x batch size^0.25
    *(1.6e-6, 3.1e-6, 6.2e-6, 1.25e-5, 2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4),
    *(8e-4, 1.6e-3, 3.1e-3, 6.2e-3, 0.0125, 0.025, 0.05, 0.1, 0.2),
)
LARGEST_STEP_TOKENS = 1024 * 512


def get_config(variant: str = "16") -> config.Config:
    batch_size = "16" if variant == "arms" else variant
    c = config.base()
    c.optimizer.peak_lr = config.variant(batch_size, PEAK_LR | {"arms": 0.0})
    c.optimizer.b1 = 0.9
    c.optimizer.t2_tokens = 10e6
    c.optimizer.weight_decay = 0.1
    c.optimizer.warmup_frac = 0.05

    c.data.source = "text:data/c4/en/*.jsonl"
    c.data.tokenizer = "file:data/t5/tokenizer.json"
    c.data.validation_frac = 0.03
    c.data.validation_max_bytes = 80_000_000  # about the paper's 20M tokens

    c.model.width = 512
    c.model.layers = 6
    c.model.head_width = 128
    c.model.context_tokens = 512

    c.train.batch_size = int(batch_size)
    c.train.microbatch_size = min(int(batch_size), 64)
    c.train.budget_tokens = 1347 * LARGEST_STEP_TOKENS
    c.train.log_every_tokens = 2**19
    c.train.sample_prompt = "The most important thing about"
    return c


def get_grid(name: str = "arms") -> Grid:
    config.variant(name, {"arms": None})
    batch_sizes = tuple(map(int, PEAK_LR))
    sizes = axis("train.batch_size", batch_sizes)
    sizes = by_batch_size(sizes, "train.microbatch_size", {size: min(size, 64) for size in batch_sizes})
    scales = by_batch_size(sizes, "optimizer.peak_lr", {size: size**0.25 for size in batch_sizes})
    rates = multiplied(scales, "optimizer.peak_lr", SCALED_LR)
    arms = chain(
        point({"optimizer.t2_tokens": 10e6, "optimizer.b2": None}),
        point({"optimizer.t2_tokens": None, "optimizer.b2": 0.95}),
    )
    return product(arms, rates, seeds(5))
