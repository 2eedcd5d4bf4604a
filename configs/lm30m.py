"""The 30M model of Marek et al. 2025 (arXiv 2507.07101), Figures 1a, 3 and 4: tuned runs and their grids.

Question: is batch size 1 as good as any other if the half-life of the second moment is fixed in tokens?
Run:      python -m smallbatch.train --config=configs/lm30m.py:16
          16 is the batch size: 1, 4, 16, 64, 256, 1024 or 4096
          python -m smallbatch.sweep --config=configs/lm30m.py:adam
          or another grid under Cost
Data:     FineWeb-Edu with the GPT-2 vocabulary. One file of its 10BT sample is enough (0.7B tokens, 2 GB):
            hf download HuggingFaceFW/fineweb-edu sample/10BT/000_00000.parquet --repo-type dataset \\
                --local-dir data/fineweb-edu
            hf download openai-community/gpt2 tokenizer.json --local-dir data/gpt2
          Or use a flat file of GPT-2 tokens: --config.data.source=tokens:train.bin
          --config.data.tokens_vocab_size=50257 --config.data.tokenizer=bytes
Size:     30M active parameters, 10.6M in the blocks and 19.3M in one of two embeddings; 49M in total.
Cost:     a run: 598M tokens (20 per active parameter), 285 steps at batch size 4096 and 1,167,360 at 1, 1.16e17
          FLOPs; 24 minutes on one TPU v4 chip in the paper, at batch sizes that use it fully (4,600 chip-hours for
          11,521 runs).
            grid                  runs  tokens    FLOPs
            adam                 2,100   1.26T  2.43e20
            adafactor              210    126B  2.43e19
            adafactor_power        210    126B  2.43e19
            muon                   700    418B   8.1e19
            sgd                    100   59.8B  1.16e19
            sensitivity          1,813   1.08T   2.1e20
            learning_rate          637    381B  7.37e19
            t1                     637    381B  7.37e19
            t2                     637    381B  7.37e19
            fixed_learning_rate    455    272B  5.27e19
            fixed_b1               455    272B  5.27e19
            fixed_b2               490    293B  5.67e19
            fixed_t2               455    272B  5.27e19
Grids:    adam, adafactor, muon, sgd: Figure 1a, 3,110 runs with either Adafactor. The learning rates of Adam and
          Adafactor scale as batch size^0.3. adafactor keeps a fixed half-life. adafactor_power is the Adafactor of
          the paper's code, which uses b2 as the exponent c of 1 - b2 = t^-c.
          sensitivity: Figure 3, one of learning rate, t1 and t2 off by a factor of up to 8, 7 seeds; learning_rate,
          t1 and t2 are its parts.
          fixed_*: Figure 4, one value at all batch sizes and the others tuned, 5 seeds. The values of fixed_b2 are
          below the tuned b2 of batch sizes 1 to 16 (0.999965 to 0.99943); fixed_t2 includes those.
          Values are from the run files of the paper's code (github.com/martin-marek/batch-size), with three
          differences. The tuned point of Figure 3 is run once instead of three times (1,911 runs). b2 = 0.95 is added
          to Figure 4 (1,820 runs without it; the paper reports 6,500, most of them unpublished). The embeddings of
          Muon use its t1, and those of the paper use Adam's.
Expect:   validation loss 3.69 nats (batch size 1), 3.73 (4, 16, 64), 3.75 (256), 3.94 (1024), above 4.9 (4096), read
          off Figure 1a. The paper uses a different validation set for each batch size and a smaller initialization,
          so compare differences between batch sizes and not the third digit. Best loss of each optimizer at batch
          size 1: SGD 3.82, adafactor_power 3.69, Adam 3.69, Muon 3.66; at 256: adafactor_power 4.00, Adam 3.75, Muon
          3.72. No number is published for adafactor. Sensitivity: a learning rate that is 8 times too small raises the
          loss by 0.025 (1), 0.16 (16) and 0.31 (256).
"""

from smallbatch import config
from smallbatch.grid import Grid, axis, by_batch_size, chain, multiplied, point, product, seeds

TUNED_LR = {"1": 0.0017, "4": 0.002, "16": 0.002, "64": 0.003, "256": 0.005, "1024": 0.005, "4096": 0.0025}
TUNED_T1_TOKENS = {1: 4e4, 4: 4e4, 16: 6e4, 64: 2e5, 256: 1e6, 1024: 3e6, 4096: 6e6}
TUNED_T2_TOKENS = 10e6
CONTEXT_TOKENS = 512
LARGEST_STEP_TOKENS = 4096 * CONTEXT_TOKENS
BATCH_SIZES = tuple(map(int, TUNED_LR))
LR, B1, T1, B2, T2 = (f"optimizer.{name}" for name in ("peak_lr", "b1", "t1_tokens", "b2", "t2_tokens"))
ADAM_LR = {size: TUNED_LR[str(size)] for size in BATCH_SIZES}

# Figure 1a.
SCALED_LR = (0.0001, 0.00035, 0.0012, 0.00416, 0.01443, 0.05)  # x batch size^0.3
ADAM_B1 = (0.0, 0.5, 0.74655, 0.88403, 0.94935, 0.97832, 0.9908, 0.99611, 0.99836, 0.99931)
T2_TOKENS = (1e6, 3.16e6, 10e6, 31.6e6, 100e6)
MUON_LR = (0.0001, 0.0002, 0.0005, 0.001, 0.0022, 0.0046, 0.01, 0.0215, 0.0464, 0.1)
MUON_T1_TOKENS = (1e3, 2783.0, 7743.0, 21_544.0, 59_948.0, 166_810.0, 464_159.0, 1_291_550.0, 3_593_814.0, 10e6)
SGD_LR = (
    *(0.05, 0.064, 0.081, 0.103, 0.132, 0.168, 0.214, 0.273, 0.348, 0.443),
    *(0.564, 0.719, 0.916, 1.168, 1.488, 1.896, 2.416, 3.079, 3.924, 5.0),
)
# Figure 3.
FACTORS = tuple(2 ** (i / 2) for i in range(-6, 7))  # 1/8 to 8
# Figure 4.
FIXED_LR = (
    *(0.0002, 0.0003, 0.00046, 0.0007, 0.00106, 0.00161, 0.00245),
    *(0.00372, 0.00565, 0.00857, 0.01301, 0.01976, 0.03),
)
FIXED_DECAYS = (
    *(0.0, 0.5, 0.68911, 0.8187, 0.89811, 0.94391, 0.96946),
    *(0.98348, 0.99109, 0.9952, 0.99742, 0.99861, 0.99925),
)
FIXED_T2_TOKENS = tuple(1e5 * 10 ** (i / 4) for i in range(13))  # to 100M


def get_config(variant: str = "16") -> config.Config:
    batch_size = "16" if variant in GRIDS else variant
    c = config.base()
    c.optimizer.peak_lr = config.variant(batch_size, TUNED_LR | dict.fromkeys(GRIDS, 0.0))
    c.optimizer.b1 = 0.9
    c.optimizer.t2_tokens = TUNED_T2_TOKENS
    c.optimizer.warmup_frac = 0.05

    c.data.source = "text:data/fineweb-edu/sample/10BT/*.parquet"
    c.data.tokenizer = "file:data/gpt2/tokenizer.json"
    c.data.validation_frac = 0.03
    c.data.validation_max_bytes = 90_000_000  # about the paper's 20M tokens

    c.model.width = 384
    c.model.layers = 6
    c.model.head_width = 128
    c.model.context_tokens = CONTEXT_TOKENS

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


def _scaled_rates() -> Grid:
    return multiplied(by_batch_size(_sizes(), LR, {size: size**0.3 for size in BATCH_SIZES}), LR, SCALED_LR)


def _adam() -> Grid:
    return product(_scaled_rates(), axis(B1, ADAM_B1), axis(T2, T2_TOKENS))


def _adafactor() -> Grid:
    return product(point({"optimizer.name": "adafactor", B1: None}), _scaled_rates(), axis(T2, T2_TOKENS))


def _adafactor_power() -> Grid:
    """Return the grid above with the decays b2 used as exponents."""
    fixed = point({"optimizer.name": "adafactor_power", B1: None, T2: None})
    exponents = ({size: 2 ** (-size * CONTEXT_TOKENS / t2) for size in BATCH_SIZES} for t2 in T2_TOKENS)
    rates = _scaled_rates()
    return product(fixed, chain(*(by_batch_size(rates, "optimizer.decay_exponent", c) for c in exponents)))


def _muon() -> Grid:
    sizes = by_batch_size(_sizes(), "optimizer.embed_lr", ADAM_LR)
    muon = point({"optimizer.name": "muon", "optimizer.muon_matrices": "heads", B1: None})
    return product(muon, sizes, axis(LR, MUON_LR), axis(T1, MUON_T1_TOKENS))


def _sgd() -> Grid:
    return product(point({"optimizer.name": "sgd", B1: None, T2: None}), _sizes(256), axis(LR, SGD_LR))


def _tuned() -> Grid:
    centers = by_batch_size(by_batch_size(_sizes(), LR, ADAM_LR), T1, TUNED_T1_TOKENS)
    return product(point({B1: None}), centers, axis(T2, [TUNED_T2_TOKENS]))


def _sensitivity(*keys: str) -> Grid:
    """Return the tuned point, and every point where one of the keys is multiplied by a factor, each once."""
    off = [factor for factor in FACTORS if factor != 1]
    return product(chain(_tuned(), *(multiplied(_tuned(), key, off) for key in keys)), seeds(7))


def _fixed(changes: Grid) -> Grid:
    """Return the tuned point of every batch size with each of the changes."""
    return product(tuple(cell | change for cell in _tuned() for change in changes), seeds(5))


GRIDS = {
    "adam": _adam,
    "adafactor": _adafactor,
    "adafactor_power": _adafactor_power,
    "muon": _muon,
    "sgd": _sgd,
    "sensitivity": lambda: _sensitivity(LR, T1, T2),
    "learning_rate": lambda: _sensitivity(LR),
    "t1": lambda: _sensitivity(T1),
    "t2": lambda: _sensitivity(T2),
    "fixed_learning_rate": lambda: _fixed(axis(LR, FIXED_LR)),
    "fixed_b1": lambda: _fixed(product(point({T1: None}), axis(B1, FIXED_DECAYS))),
    "fixed_b2": lambda: _fixed(product(point({T2: None}), axis(B2, (*FIXED_DECAYS, 0.95)))),
    "fixed_t2": lambda: _fixed(axis(T2, FIXED_T2_TOKENS)),
}
