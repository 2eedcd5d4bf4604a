"""A small decoder at batch sizes 1 to 256: Adam with two rules for b2, and plain SGD.

Question: which batch size and optimizer reach the lowest loss on equal tokens, and how sensitive is each to the
          learning rate?
Run:      python -m smallbatch.sweep --config=configs/quickstart_grid.py
Data:     the Python standard library of your interpreter.
Cost:     75 runs of 524,288 tokens: 3 methods x 5 batch sizes x 5 learning rates, a factor of 2 apart; 131k
          parameters, context 64; 3.1e13 FLOPs; 10 compiled programs; 10 minutes on 2 cores.
Expect:   the loss grows with the batch size, from 2.14 to 3.12 nats with Adam. SGD is 0.13 nats above Adam at batch
          size 1 and 0.40 nats above it at 256 (seed 0, Python 3.11). A half-life of 221,000 tokens is b2 = 0.95 at
          batch size 256, so both rules are equal there. At batch size 1, the half-life is 0.03 nats better.
"""

from smallbatch import config
from smallbatch.grid import Grid, axis, by_batch_size, chain, multiplied, point, product

BATCH_SIZES = (1, 4, 16, 64, 256)
ADAM = {"optimizer.name": "adam", "optimizer.b1": 0.9}
# The keys of each method, and its middle learning rate for each batch size.
METHODS = (
    (ADAM | {"optimizer.t2_tokens": 221_000.0, "optimizer.b2": None}, (2**-9, 2**-7, 2**-7, 2**-6, 2**-6)),
    (ADAM | {"optimizer.t2_tokens": None, "optimizer.b2": 0.95}, (2**-8, 2**-8, 2**-7, 2**-6, 2**-6)),
    (
        {"optimizer.name": "sgd", "optimizer.b1": None, "optimizer.t2_tokens": None, "optimizer.b2": None},
        (2**-2, 2**-1, 2**-1, 2**-1, 2**-1),
    ),
)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def get_config() -> config.Config:
    c = config.quickstart()
    c.model.width = 64
    c.model.layers = 2
    c.model.context_tokens = 64
    c.train.budget_tokens = 2**19
    c.train.sample_tokens = 0
    c.data.validation_max_bytes = 65_536
    return c


def get_grid() -> Grid:
    return chain(*(_method(values, dict(zip(BATCH_SIZES, rates, strict=True))) for values, rates in METHODS))


def _method(values: dict, rates: dict[int, float]) -> Grid:
    centers = by_batch_size(product(point(values), axis("train.batch_size", BATCH_SIZES)), "optimizer.peak_lr", rates)
    return multiplied(centers, "optimizer.peak_lr", FACTORS)
