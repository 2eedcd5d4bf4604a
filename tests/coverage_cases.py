"""Simulated grids and laws with known true values, to measure the coverage of intervals.

tests/test_coverage.py runs a few repetitions of each case. `python tests/coverage_cases.py 1000` runs 1,000 and prints
the coverage of every case.
"""

import sys
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from grids import Cell, table_of

from smallbatch.analysis import learning_rates, robustness
from smallbatch.analysis.read.run_table import Group
from smallbatch.analysis.stats import batch_law, power_law

CURVATURE = 0.03  # nats per squared doubling: Adam at batch size 256 in Marek et al. 2025, figure 3
SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # rise / CURVATURE at u doublings above the optimum
    "parabola": lambda u: u**2,
    "right 1.25x": lambda u: np.where(u > 0, 1.25, 1.0) * u**2,
    "right 2x": lambda u: np.where(u > 0, 2.0, 1.0) * u**2,
    "right 10x": lambda u: np.where(u > 0, 10.0, 1.0) * u**2,
    "exponential right": lambda u: 2 * (np.exp(u) - 1 - u),
    "flat left": lambda u: np.where(u > 0, u**2, u**2 / (1 + u**2 / 4)),
    "cusp": np.abs,
}
STEPS_LOG2 = {"factor 2": 1.0, "factor sqrt 2": 0.5}


def basin_group(shape, step_log2, seeds, sd, paired, rng, optimum_log2, batch_size=4, reach=5.0) -> Group:
    """Return a grid over one basin. `paired`: a seed shifts all losses equally, plus 20% of independent noise."""
    log2_x = np.arange(-reach, reach + step_log2 / 2, step_log2)
    shared = rng.standard_normal(seeds)
    cells = []
    for x in log2_x:
        own = rng.standard_normal(seeds)
        noise = sd * (shared + 0.2 * own if paired else own)
        truth = 2.5 + CURVATURE * float(SHAPES[shape](np.float64(x - optimum_log2)))
        cells += [
            Cell({"train.batch_size": batch_size, "optimizer.peak_lr": 0.002 * 2.0**x, "train.seed": s}, truth + extra)
            for s, extra in enumerate(noise)
        ]
    return table_of(cells).groups[0]


def best_rates(repeats: int, shape: str, step_log2: float, seeds: int, sd: float, paired: bool) -> Iterator[bool]:
    """Yield whether the interval of the best learning rate contains the optimum, which is at a random grid offset."""
    rng = np.random.default_rng(11)
    for _ in range(repeats):
        optimum_log2 = rng.uniform(-0.5, 0.5) * step_log2
        group = basin_group(shape, step_log2, seeds, sd, paired, rng, optimum_log2)
        interval = learning_rates.optimum(group).interval
        yield bool(interval[0] <= 0.002 * 2**optimum_log2 <= interval[1])


def exponents(
    repeats: int, shape: str, step_log2: float, seeds: int, sd: float, paired: bool, scatter=0.0
) -> Iterator[bool]:
    """Yield whether the interval of the exponent over five batch sizes contains it. `scatter`: noise of the optima."""
    rng = np.random.default_rng(12)
    for _ in range(repeats):
        exponent, first = rng.uniform(0, 0.5), rng.uniform(-1.5, -0.5)
        found = []
        for k in (0, 1, 2, 3, 4):
            optimum_log2 = first + exponent * k + scatter * rng.standard_normal()
            group = basin_group(shape, step_log2, seeds, sd, paired, rng, optimum_log2, batch_size=2**k)
            found.append(learning_rates.optimum(group))
        law = learning_rates.law(found)
        yield bool(law.interval[0] <= exponent <= law.interval[1])


def widths(repeats: int, shape: str, step_log2: float, seeds: int, sd: float, paired: bool) -> Iterator[bool]:
    """Return whether the interval of the width within 0.02, 0.06 or 0.12 nats contains it; True without a width."""
    rng = np.random.default_rng(13)
    fine = np.linspace(-5, 5, 100_001)
    rise = CURVATURE * SHAPES[shape](fine)
    for delta in np.resize([0.02, 0.06, 0.12], repeats):
        truth = np.ptp(fine[rise <= delta])
        optimum_log2 = rng.uniform(-0.5, 0.5) * step_log2
        group = basin_group(shape, step_log2, seeds, sd, paired, rng, optimum_log2)
        profile = robustness.profile(group, "optimizer.peak_lr")
        low, high = robustness.width_interval(group, profile, delta)
        yield bool(low <= truth <= high)


def batch_laws(repeats: int, sizes: int, seeds: int, part: str, sd=0.05, shared=0.0) -> Iterator[bool]:
    """Yield whether the interval of b/a contains it. `shared`: noise that is equal for all seeds of a batch size."""
    rng = np.random.default_rng(14)
    size = np.repeat(4.0 ** np.arange(sizes) if sizes < 7 else 2.0 ** np.arange(sizes), seeds)
    for _ in range(repeats):
        a, b = {"both": (1.0, 4.0 ** rng.uniform(0, sizes - 1)), "a": (1.0, 0.0), "b": (0.0, 1.0)}[part]
        noise = sd * rng.standard_normal(len(size)) + shared * np.repeat(rng.standard_normal(sizes), seeds)
        law = batch_law.fit(size, (a + b / size) * np.exp(noise))
        yield bool(law.ratio_interval[0] <= (b / a if a else np.inf) <= law.ratio_interval[1])


def power_laws(repeats: int, points: int, scatter: float, error: float) -> Iterator[bool]:
    """Yield whether the interval of an exponent contains it, for points with scatter and errors of known size."""
    rng = np.random.default_rng(15)
    x = 4.0 ** np.arange(points)
    for _ in range(repeats):
        off = np.hypot(scatter, error) * rng.standard_normal(points)
        law = power_law.fit(x, x**0.25 * np.exp(off), np.full(points, 1.645 * error) if error else None)
        yield bool(law.interval[0] <= 0.25 <= law.interval[1])


BASINS = list(product(SHAPES, STEPS_LOG2, (3, 7), (0.002, 0.01), (False, True)))
EXPONENTS = list(product(SHAPES, STEPS_LOG2, (1, 3, 7), (0.002, 0.01), (False, True)))
BATCH_LAWS = [
    *product((3, 5, 9), (1, 3), ("both", "a", "b"), (0.05,), (0.0,)),
    *product((5,), (3,), ("both", "a", "b"), (0.02,), (0.05,)),
]
POWER_LAWS = [*product((3, 4, 7), (0.2,), (0.0, 0.05, 0.3)), *product((3, 4, 7), (0.0,), (0.1,))]


def basin_case(case: tuple) -> tuple:
    """Return the arguments of a case: (shape, log2 of the grid step, seeds, standard deviation, paired)."""
    shape, grid, seeds, sd, paired = case
    return shape, STEPS_LOG2[grid], seeds, sd, paired


def main(repeats: int, wanted: str = "") -> None:
    for name, simulate, cases in (
        ("batch law", batch_laws, BATCH_LAWS),
        ("power law", power_laws, POWER_LAWS),
        ("best learning rate", lambda n, *case: best_rates(n, *basin_case(case)), BASINS),
        ("width", lambda n, *case: widths(n, *basin_case(case)), BASINS),
        ("exponent", lambda n, *case: exponents(n, *basin_case(case)), EXPONENTS),
        ("exponent, scatter", lambda n, *case: exponents(n, *basin_case(case), scatter=0.5), EXPONENTS[::6]),
    ):
        for case in cases if wanted in name else ():
            print(f"{np.mean(list(simulate(repeats, *case))):.3f}  {name}  {case}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
