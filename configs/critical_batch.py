"""The critical batch size of Zhang et al. 2024 (arXiv 2410.21676): steps to a target loss by batch size.

Question: up to which batch size does doubling it halve the steps to a target loss, and does this batch size grow with
          the model?
Run:      python -m smallbatch.sweep --config=configs/critical_batch.py:85M
          or 151M, 302M, 604M or 1.2B, the parameters without embeddings: 9 batch sizes each, 45 runs in total
Data:     C4 with the GPT-NeoX vocabulary: the first files of its English part, 0.3 GB each and 0.8 GB unpacked. This
          is the file pattern for 85M; the table under Cost has the others.
            hf download allenai/c4 --include 'en/c4-train.00[01]*.json.gz' --repo-type dataset --local-dir data/c4
            for f in data/c4/en/*.json.gz; do gunzip -c $f > ${f%.json.gz}.jsonl; done
            hf download EleutherAI/gpt-neox-20b tokenizer.json --local-dir data/neox
Method:   constant learning rate after a warmup; the average of the weights is evaluated. b2 and the decay of that
          average follow the paper's tables by batch size. The target (TARGET_NATS) is the loss of batch size 256 after
          20 tokens per parameter. Each run takes 1.25 times the paper's number of steps to the target.
Cost:       size  runs  tokens    FLOPs  longest run  files (read once)
            85M      9   43.9B   3.5e19        16.8B  200: c4-train.00[01]*
            151M     9   69.9B  9.02e19        24.1B  300: c4-train.00[0-2]*
            302M     9    110B   2.5e20        30.2B  300: c4-train.00[0-2]*
            604M     9    164B  7.21e20        39.8B  400: c4-train.00[0-3]*
            1.2B     9    331B  2.71e21        68.2B  600: c4-train.00[0-5]*
          A file is assumed to have at least 0.12B tokens; with the smaller vocabulary of lm19m.py it has 0.15B.
Expect:   steps to the target of 85M: 46,000 (64), 13,282 (256), 3,840 (1024), 1,800 (4096), 1,600 (16384). The fit
          log steps = log(a + b/B) gives critical batch sizes of 745, 955, 1394, 1889 and 2533 sequences, about
          93 N^0.47 with N in millions of parameters. At the critical batch size, 20% more steps are needed than with
          perfect scaling from batch size 256.
"""

from smallbatch import config
from smallbatch.grid import Grid, axis, by_batch_size

SHAPES = {"85M": (768, 12), "151M": (1024, 12), "302M": (1024, 24), "604M": (2048, 12), "1.2B": (2048, 24)}
TARGET_NATS = {"85M": 3.42, "151M": 3.24, "302M": 3.07, "604M": 2.92, "1.2B": 2.736}
CHINCHILLA_STEPS = {"85M": 13_282, "151M": 23_438, "302M": 46_875, "604M": 93_750, "1.2B": 187_500}  # at batch size 256
BATCH_SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
STEPS_TO_TARGET = {
    "85M": (46_000, 23_000, 13_282, 7_000, 3_840, 2_500, 1_800, 1_600, 1_600),
    "151M": (96_000, 49_000, 24_000, 11_951, 7_128, 4_200, 2_760, 2_400, 2_300),
    "302M": (196_000, 90_000, 46_000, 23_400, 13_300, 7_224, 4_980, 3_400, 2_879),
    "604M": (311_000, 166_000, 81_000, 37_440, 21_320, 11_400, 7_199, 4_700, 3_800),
    "1.2B": (643_000, 331_000, 176_000, 94_000, 46_500, 25_000, 15_360, 8_900, 6_500),
}
B2 = (0.999, 0.999, 0.995, 0.99, 0.99, 0.95, 0.95, 0.95, 0.95)
WEIGHT_AVERAGE_B = (0.9995, 0.9995, 0.9995, 0.9995, 0.999, 0.998, 0.995, 0.99, 0.99)
CONTEXT_TOKENS = 512


def get_config(size: str = "85M") -> config.Config:
    width, layers = config.variant(size, SHAPES)
    c = config.base()
    c.optimizer.peak_lr = 3.16e-3
    c.optimizer.schedule = "constant"
    c.optimizer.warmup_tokens = CHINCHILLA_STEPS[size] * 256 * CONTEXT_TOKENS // 4
    c.optimizer.b1 = 0.8 if size == "1.2B" else 0.95
    c.optimizer.b2 = 0.995
    c.optimizer.clip_norm = 1.0
    c.optimizer.weight_average_b = 0.9995

    c.data.source = "text:data/c4/en/*.jsonl"
    c.data.tokenizer = "file:data/neox/tokenizer.json"
    c.data.validation_frac = 0.001
    c.data.validation_max_bytes = 20_000_000

    c.model.width = width
    c.model.layers = layers
    c.model.head_width = 64
    c.model.context_tokens = CONTEXT_TOKENS

    c.train.batch_size = 256
    c.train.microbatch_size = 64
    c.train.budget_tokens = _budget(size, 256)
    c.train.validate_every_tokens = c.train.budget_tokens // 100
    c.train.log_every_tokens = 2**23
    c.train.sample_tokens = 0
    return c


def get_grid(size: str = "85M") -> Grid:
    grid = axis("train.batch_size", BATCH_SIZES)
    for key, values in (
        ("train.budget_tokens", [_budget(size, batch_size) for batch_size in BATCH_SIZES]),
        ("train.validate_every_tokens", [_budget(size, batch_size) // 100 for batch_size in BATCH_SIZES]),
        ("optimizer.b2", B2),
        ("optimizer.weight_average_b", WEIGHT_AVERAGE_B),
    ):
        grid = by_batch_size(grid, key, dict(zip(BATCH_SIZES, values, strict=True)))
    return grid


def _budget(size: str, batch_size: int) -> int:
    steps = STEPS_TO_TARGET[size][BATCH_SIZES.index(batch_size)]
    return steps * 5 // 4 * batch_size * CONTEXT_TOKENS
