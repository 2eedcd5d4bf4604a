"""The published grids have the right runs and values, and their docstrings state the right costs."""

import functools
import itertools
import re
import runpy
from pathlib import Path

import pytest

from smallbatch.config import files as config_files
from smallbatch.grid.cells import enumerate_cells
from smallbatch.plan import flops
from smallbatch.plan import plan as plans
from smallbatch.runs.progress import format_count
from smallbatch.specs import DeviceSpec

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# Runs by file and grid. Published counts are from Table 2 of Marek et al. 2025 and, for parts of them, from the run
# files of its code. Those of Adafactor hold for both versions.
PUBLISHED = {
    "lm30m.py:adam": 7 * 6 * 10 * 5,
    "lm30m.py:adafactor": 7 * 6 * 5,
    "lm30m.py:adafactor_power": 7 * 6 * 5,
    "lm30m.py:muon": 7 * 10 * 10,
    "lm30m.py:sgd": 5 * 20,
    "lm30m.py:fixed_learning_rate": 7 * 13 * 5,
    "lm30m.py:fixed_b1": 7 * 13 * 5,
    "lm30m.py:fixed_t2": 7 * 13 * 5,
    "lm19m.py:arms": 1260,
    "gpt2s.py:optimizers": 5 * 8,
    "gpt2s.py:lr_beta1": 352 - 5 * 8,
    "gpt3xl.py:headline": 11,
}
# Grids that are not published in this form.
OURS = {
    "lm30m.py:sensitivity": 7 * 7 * (1 + 3 * 12),  # 13 factors for each of three keys; their common center is run once
    "lm30m.py:learning_rate": 7 * 7 * 13,
    "lm30m.py:t1": 7 * 7 * 13,
    "lm30m.py:t2": 7 * 7 * 13,
    "lm30m.py:fixed_b2": 7 * 14 * 5,  # 0.95 beside the published 13
    "gpt2s.py:adafactor_power": 8,
    "gpt3xl.py:adafactor_power": 4,
    **{f"critical_batch.py:{size}": 9 for size in ("85M", "151M", "302M", "604M", "1.2B")},
    "quickstart_grid.py": 75,
}
RUNS = PUBLISHED | OURS
# Vocabulary, smallest and largest batch size; parameters and data are in test_config.py.
FILES = {
    "lm30m": (50_257, 1, 4096),
    "lm19m": (32_101, 16, 1024),
    "gpt2s": (50_257, 1, 512),
    "gpt3xl": (50_257, 1, 512),
    "critical_batch": (50_277, 64, 16_384),
    "quickstart_grid": (256, 1, 256),
}
SIZES_30M = (1, 4, 16, 64, 256, 1024, 4096)


@functools.cache
def cells(name: str):
    path = str(CONFIGS / name)
    return enumerate_cells(config_files.load(path), config_files.load_grid(path))


def values(grid: str, key: str, batch_size: int, /, **others) -> list[float]:
    """Return the values of a key at a batch size, ascending, of the cells with these values of other optimizer keys."""
    chosen = {"train.batch_size": batch_size} | {f"optimizer.{other}": value for other, value in others.items()}
    flats = [cell.flat for cell in cells(grid)]
    return sorted({flat[f"optimizer.{key}"] for flat in flats if chosen.items() <= flat.items()})


def docstring(file: str) -> str:
    return runpy.run_path(str(CONFIGS / f"{file}.py"))["__doc__"]


def vocab_size(name: str) -> int:
    return FILES[name.partition(".")[0]][0]


def plan(name: str, cell=None) -> plans.Plan:
    config = config_files.load(str(CONFIGS / name)) if cell is None else cell.config
    return plans.make(config, vocab_size=vocab_size(name), devices=DeviceSpec("cpu", 1))


def scientific(number: float) -> str:
    return f"{number:.3g}".replace("e+", "e")


def equal_ratios(low: float, high: float, count: int, digits: int = 15) -> list[float]:
    """Return numbers at equal ratios, rounded to `digits` decimals."""
    return [round(low * (high / low) ** (i / (count - 1)), digits) for i in range(count)]


# --- number of runs


def test_every_grid_has_an_expected_number_of_runs():
    files = {path.stem: runpy.run_path(str(path)) for path in CONFIGS.glob("*.py")}
    grids = {f"{name}.py:{grid}" for name, file in files.items() for grid in file.get("GRIDS", ())}
    assert grids <= RUNS.keys()
    assert {name for name, file in files.items() if "get_grid" in file} == {name.partition(".")[0] for name in RUNS}


def test_the_counts_add_up_to_the_totals_of_the_paper():
    def total(*grids):
        return sum(RUNS[f"lm30m.py:{grid}"] for grid in grids)

    assert total("adam", "adafactor_power", "muon", "sgd") == total("adam", "adafactor", "muon", "sgd") == 3110
    assert total("fixed_learning_rate", "fixed_b1", "fixed_b2", "fixed_t2") == 1820 + 7 * 5  # 0.95 is ours
    assert RUNS["gpt2s.py:optimizers"] + RUNS["gpt2s.py:lr_beta1"] == 352


@pytest.mark.parametrize("name", RUNS)
def test_a_grid_has_the_expected_number_of_valid_runs(name):
    assert len(cells(name)) == RUNS[name]


# --- cost


@pytest.mark.parametrize("name", [name for name in RUNS if name != "quickstart_grid.py"])
def test_a_docstring_states_the_cost_of_its_grid(name):
    file, _, grid = name.partition(".py:")
    budgets = [cell.flat["train.budget_tokens"] for cell in cells(name)]
    if file != "critical_batch":
        assert len(set(budgets)) == 1
    cost = sum(budgets) * plan(name, cells(name)[0]).flops_per_token
    row = [grid, f"{len(budgets):,}", format_count(sum(budgets)), scientific(cost)]
    assert row in [line.split()[:4] for line in docstring(file).splitlines()]


def test_every_cost_row_belongs_to_a_grid():
    row = re.compile(r"^ +(\S+) +[\d,]+ +[\d.]+[MBT] +[\d.]+e\d+", re.MULTILINE)
    stated = [f"{file}.py:{grid}" for file in FILES for grid in row.findall(docstring(file))]
    assert sorted(stated) == sorted(RUNS.keys() - {"quickstart_grid.py"})


@pytest.mark.parametrize("file", ["lm30m", "lm19m", "gpt2s", "gpt3xl"])
def test_a_docstring_states_the_cost_of_a_run(file):
    _, smallest, largest = FILES[file]
    found = plan(f"{file}.py")
    context = found.model.context_tokens
    text = " ".join(docstring(file).split())
    assert f"a run: {format_count(found.budget_tokens)} tokens" in text
    assert f"{found.budget_tokens // (largest * context):,} steps at batch size {largest} and" in text
    assert f"and {found.budget_tokens // (smallest * context):,} at {smallest}, {scientific(found.flops)} FLOPs" in text


@pytest.mark.parametrize("size", ["85M", "151M", "302M", "604M", "1.2B"])
def test_the_data_files_of_critical_batch_suffice_for_the_longest_run(size):
    longest = max(cell.flat["train.budget_tokens"] for cell in cells(f"critical_batch.py:{size}"))
    (row,) = [line.split() for line in docstring("critical_batch").splitlines() if line.split()[:1] == [size]]
    said, count, pattern = row[4], int(row[5].rstrip(":")), row[6]
    low, high = re.fullmatch(r"c4-train\.00\[(\d)-?(\d)\]\*", pattern).groups()
    assert said == format_count(longest)
    assert count == 100 * (int(high) - int(low) + 1)  # 00000 to 00099 begin with 000
    assert longest <= count * 0.12e9 < longest + 100 * 0.12e9
    if size == "85M":
        assert f"'en/{pattern}.json.gz'" in docstring("critical_batch")


def test_the_quickstart_docstrings_state_their_costs():
    run, grid = (" ".join(docstring(name).split()) for name in ("quickstart", "quickstart_grid"))
    found = plans.make(config_files.load(str(CONFIGS / "quickstart.py")), vocab_size=256, devices=DeviceSpec("cpu", 1))
    assert (found.first.batch_size, found.model.context_tokens) == (4, 256)
    assert f"1.0M tokens, {found.optimizer_steps:,} steps of 4 sequences of 256 bytes" in run
    assert f"{found.params / 1e6:.1f}M parameters, {found.flops:.1e} FLOPs".replace("e+", "e") in run
    small = [plan("quickstart_grid.py", cell) for cell in cells("quickstart_grid.py")]
    assert f"{len(small)} runs of {small[0].budget_tokens:,} tokens" in grid
    assert f"{small[0].params / 1e3:.0f}k parameters, context {small[0].model.context_tokens}" in grid
    assert f"{sum(one.flops for one in small):.1e} FLOPs".replace("e+", "e") in grid
    assert f"{len({one.program() for one in small})} compiled programs" in grid


def test_the_models_of_critical_batch_have_the_sizes_in_their_names():
    for size, params in {"85M": 85e6, "151M": 151e6, "302M": 302e6, "604M": 604e6, "1.2B": 1.2e9}.items():
        found = plan(f"critical_batch.py:{size}", cells(f"critical_batch.py:{size}")[0])
        assert found.non_embedding_params == pytest.approx(params, rel=0.01)
        assert flops.non_embedding_params(found.model) == found.non_embedding_params


# --- values on the axes, entered or computed a second time

TUNED_30M = {  # batch size: learning rate, t1 in tokens, b1, 1 - b2 at t2 = 10M
    1: (0.0017, 40_000, 0.991, 1 - 0.999965),
    4: (0.002, 40_000, 0.965, 1 - 0.99986),
    16: (0.002, 60_000, 0.910, 1 - 0.99943),
    64: (0.003, 200_000, 0.893, 1 - 0.9977),
    256: (0.005, 1_000_000, 0.913, 1 - 0.9910),
    1024: (0.005, 3_000_000, 0.886, 1 - 0.9643),
    4096: (0.0025, 6_000_000, 0.785, 1 - 0.8647),
}


def test_learning_rates_of_adam_and_adafactor_scale_as_batch_size_to_the_0_3():
    for grid, size in itertools.product(("adam", "adafactor", "adafactor_power"), SIZES_30M):
        scaled = [rate / size**0.3 for rate in values(f"lm30m.py:{grid}", "peak_lr", size)]
        assert scaled == pytest.approx(equal_ratios(0.0001, 0.05, 6, digits=5))


def test_figure_1a_has_the_published_decays_and_half_lives():
    half_lives = [1e6, 3.16e6, 10e6, 31.6e6, 100e6]
    decays = [0, 0.5, 0.74655, 0.88403, 0.94935, 0.97832, 0.9908, 0.99611, 0.99836, 0.99931]
    for size in SIZES_30M:
        assert values("lm30m.py:adam", "b1", size) == decays
        assert values("lm30m.py:adam", "t2_tokens", size) == half_lives
        assert values("lm30m.py:adafactor", "t2_tokens", size) == half_lives


def test_adafactor_power_uses_decays_as_exponents():
    exponents = {size: values("lm30m.py:adafactor_power", "decay_exponent", size) for size in SIZES_30M}
    assert exponents[4096] == pytest.approx([0.234, 0.631, 0.8647, 0.955, 0.9856], abs=1e-3)
    for size, (*_, one_minus_b) in TUNED_30M.items():
        assert 1 - exponents[size][2] == pytest.approx(one_minus_b, rel=0.02, abs=5e-5)
    for file in ("gpt2s", "gpt3xl"):
        assert values(f"{file}.py:adafactor_power", "decay_exponent", 1) == [0.9999]
        assert {cell.flat["optimizer.name"] for cell in cells(f"{file}.py:adafactor_power")} == {"adafactor_power"}


def test_muon_and_sgd_have_the_same_learning_rates_at_every_batch_size():
    for size in SIZES_30M:
        assert values("lm30m.py:muon", "peak_lr", size) == equal_ratios(0.0001, 0.1, 10, digits=4)
        assert values("lm30m.py:muon", "t1_tokens", size) == equal_ratios(1e3, 1e7, 10, digits=0)
        assert values("lm30m.py:muon", "embed_lr", size) == [TUNED_30M[size][0]]
        assert values("lm30m.py:muon", "t2_tokens", size) == [10_000_000]
    for size in SIZES_30M[:5]:
        assert values("lm30m.py:sgd", "peak_lr", size) == equal_ratios(0.05, 5, 20, digits=3)


def test_the_sensitivity_grids_are_centered_on_the_tuned_point():
    factors = equal_ratios(1 / 8, 8, 13)
    for size, (rate, t1, b1, one_minus_b) in TUNED_30M.items():
        tuned = {"peak_lr": rate, "t1_tokens": t1, "t2_tokens": 10_000_000}
        for grid, key in (("learning_rate", "peak_lr"), ("t1", "t1_tokens"), ("t2", "t2_tokens")):
            others = {other: value for other, value in tuned.items() if other != key}
            found = pytest.approx([tuned[key] * factor for factor in factors])
            assert values(f"lm30m.py:{grid}", key, size, **others) == found
            assert values("lm30m.py:sensitivity", key, size, **others) == found
        assert 2 ** (-size * 512 / t1) == pytest.approx(b1, abs=6e-4)
        assert 1 - 2 ** (-size * 512 / 10e6) == pytest.approx(one_minus_b, rel=0.02, abs=5e-5)
    assert {cell.flat["train.seed"] for cell in cells("lm30m.py:sensitivity")} == set(range(7))


def test_figure_4_fixes_one_value_at_all_batch_sizes_and_tunes_the_others():
    decays = [0, 0.5, 0.68911, 0.8187, 0.89811, 0.94391, 0.96946, 0.98348, 0.99109, 0.9952, 0.99742, 0.99861, 0.99925]
    for size, (rate, t1, _, one_minus_b) in TUNED_30M.items():
        tuned = {"peak_lr": rate, "t1_tokens": t1, "t2_tokens": 10_000_000}

        def found(grid, key, size=size, tuned=tuned, **changed):
            return values(f"lm30m.py:{grid}", key, size, **{k: v for k, v in (tuned | changed).items() if k != key})

        assert found("fixed_learning_rate", "peak_lr") == equal_ratios(0.0002, 0.03, 13, digits=5)
        assert found("fixed_t2", "t2_tokens") == pytest.approx(equal_ratios(1e5, 1e8, 13))
        assert found("fixed_b1", "b1", t1_tokens=None) == decays
        assert found("fixed_b2", "b2", t2_tokens=None) == sorted([*decays, 0.95])
        assert size < 64 or decays[1] < 1 - one_minus_b < decays[-1]  # the tuned b2, which fixed_t2 has at every size
    assert {cell.flat["train.seed"] for cell in cells("lm30m.py:fixed_b2")} == set(range(5))


def test_the_19m_grid_has_the_published_learning_rates_and_both_rules_for_b2():
    below = [1.6e-6, 3.1e-6, 6.2e-6, 1.25e-5, 2.5e-5, 5e-5]
    above = [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.1e-3, 6.2e-3, 1.25e-2, 2.5e-2, 5e-2, 1e-1, 2e-1]
    for size in (16, 32, 64, 128, 256, 512, 1024):
        for arm in ({"t2_tokens": 10_000_000, "b2": None}, {"t2_tokens": None, "b2": 0.95}):
            scaled = [rate / size**0.25 for rate in values("lm19m.py:arms", "peak_lr", size, **arm)]
            assert scaled == pytest.approx([*below, *above], abs=1e-12)
    assert {cell.flat["train.seed"] for cell in cells("lm19m.py:arms")} == set(range(5))
    assert {cell.flat["optimizer.weight_decay"] for cell in cells("lm19m.py:arms")} == {0.1}


TUNED_GPT = {  # learning rate at 124M and at 1.3B, batch size, other optimizer keys
    "adamw512": (0.0048, 2e-4, 512, {"name": "adam", "b1": 0.9, "b2": 0.95, "weight_decay": 0.1}),
    "adam1": (0.0024, 6.7e-5, 1, {"name": "adam", "b1": 0.9, "b2": 0.9999, "weight_decay": 0.0}),
    "adam1_b2_fixed": (0.00015, 6.7e-5, 1, {"name": "adam", "b1": 0.9, "b2": 0.95, "weight_decay": 0.0}),
    "sgd1": (0.2, 0.15, 1, {"name": "sgd", "b1": None, "b2": None, "weight_decay": 0.0}),
    "adafactor1": (0.005, 0.0032, 1, {"name": "adafactor", "b1": None, "b2": 0.9999, "weight_decay": 0.0}),
    "adafactor_power1": (0.005, 0.0032, 1, {"name": "adafactor_power", "b1": None, "decay_exponent": 0.9999}),
}


RATES_124M = {  # as published, except the first of SGD
    "adamw512": "1.5e-4 3e-4 6e-4 1.2e-3 2.4e-3 4.8e-3 1e-2 2e-2",
    "adam1": "7.5e-5 1.5e-4 3e-4 6e-4 1.2e-3 2.4e-3 4.8e-3 1e-2",
    "adam1_b2_fixed": "7.5e-5 1.5e-4 3e-4 6e-4 1.2e-3 2.4e-3 4.8e-3 1e-2",
    "sgd1": "6e-3 1.2e-2 2.5e-2 5e-2 1e-1 2e-1 4e-1 8e-1",
    "adafactor1": "3e-4 6e-4 1.2e-3 2.5e-3 5e-3 1e-2 2e-2 4e-2",
    "adafactor_power1": "3e-4 6e-4 1.2e-3 2.5e-3 5e-3 1e-2 2e-2 4e-2",
}


@pytest.mark.parametrize("arm", TUNED_GPT)
def test_the_gpt_variants_are_tuned_and_belong_to_their_grids(arm):
    small, large, batch_size, others = TUNED_GPT[arm]
    for file, rate in {"gpt2s": small, "gpt3xl": large}.items():
        c = config_files.load(f"{CONFIGS / file}.py:{arm}")
        assert (c.train.batch_size, c.optimizer.peak_lr) == (batch_size, rate)
        assert others.items() <= c.optimizer.to_dict().items()

    both = ("optimizers", "headline") if arm != "adafactor_power1" else ("adafactor_power", "adafactor_power")
    rates = values(f"gpt2s.py:{both[0]}", "peak_lr", batch_size, **others)
    assert rates == list(map(float, RATES_124M[arm].split())) and small in rates
    tried = (1,) if arm in ("adam1", "adam1_b2_fixed", "adamw512") else (0.5, 1, 2, 4)
    assert values(f"gpt3xl.py:{both[1]}", "peak_lr", batch_size, **others) == [large * factor for factor in tried]


def test_the_124m_grid_has_the_published_learning_rates_and_decays():
    decays = [0, 0.5, 0.68913, 0.81873, 0.89814, 0.94393, 0.96948, 0.98349, 0.9911, 0.99521, 0.99742, 0.99861]
    for size, centre, weight_decay in ((1, 2**-11, 0.0), (512, 2**-8, 0.1)):
        rates = values("gpt2s.py:lr_beta1", "peak_lr", size, t2_tokens=10_000_000, weight_decay=weight_decay)
        assert rates == pytest.approx(equal_ratios(centre / 8, centre * 8, 13))
        assert values("gpt2s.py:lr_beta1", "b1", size) == decays


def test_critical_batch_has_the_tables_of_the_paper():
    b2 = [0.999, 0.999, 0.995, 0.99, 0.99, 0.95, 0.95, 0.95, 0.95]
    average = [0.9995, 0.9995, 0.9995, 0.9995, 0.999, 0.998, 0.995, 0.99, 0.99]
    steps_to_target = {  # and the tuned numbers that do not depend on the batch size
        "85M": "46000 23000 13282 7000 3840 2500 1800 1600 1600",
        "151M": "96000 49000 24000 11951 7128 4200 2760 2400 2300",
        "302M": "196000 90000 46000 23400 13300 7224 4980 3400 2879",
        "604M": "311000 166000 81000 37440 21320 11400 7199 4700 3800",
        "1.2B": "643000 331000 176000 94000 46500 25000 15360 8900 6500",
    }
    twenty_a_param = {"85M": 13_282, "151M": 23_438, "302M": 46_875, "604M": 93_750, "1.2B": 187_500}
    target_nats = {"85M": 3.42, "151M": 3.24, "302M": 3.07, "604M": 2.92, "1.2B": 2.736}
    assert runpy.run_path(str(CONFIGS / "critical_batch.py"))["TARGET_NATS"] == target_nats
    for size, row in steps_to_target.items():
        flats = [cell.flat for cell in cells(f"critical_batch.py:{size}")]
        assert [flat["train.batch_size"] for flat in flats] == [2**i for i in range(6, 15)]
        assert [flat["optimizer.b2"] for flat in flats] == b2
        assert [flat["optimizer.weight_average_b"] for flat in flats] == average
        budgets = [flat["train.budget_tokens"] / flat["train.batch_size"] / 512 / 1.25 for flat in flats]
        assert budgets == pytest.approx(list(map(int, row.split())), rel=4e-4)  # 5/4 of them, in whole steps
        assert {flat["optimizer.warmup_tokens"] for flat in flats} == {twenty_a_param[size] * 256 * 512 // 4}
        assert {flat["optimizer.peak_lr"] for flat in flats} == {3.16e-3}
        assert {flat["optimizer.b1"] for flat in flats} == {0.8 if size == "1.2B" else 0.95}
