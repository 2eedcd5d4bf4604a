"""Losses of tiny runs and numbers of the report equal recorded ones.

To change them on purpose, record them again with `python tests/test_golden.py`, and give the reason in the commit
message.
"""

import json
import platform
import sys
from pathlib import Path

import grids
import numpy as np
import pytest
import runs

pytestmark = pytest.mark.slow

home = runs.home

GOLDEN = Path(__file__).parent / "golden"
RECORD_STEPS = (1, 20, 40)
SAME_CPU_RTOL = 1e-6
OTHER_CPU_RTOL = 2e-3  # for other vector instructions: rounding errors grow during a run

NO_B1 = {"optimizer.b1": None, "optimizer.t1_tokens": None}
NO_B2 = {"optimizer.b2": None, "optimizer.t2_tokens": None}
WARMUP = {"optimizer.warmup_frac": 0.1, "train.log_every_tokens": 1}
EIGHT_HEADS = {"model.head_width": 4}


def _run(name: str, batch_size: int, peak_lr: float, **changes) -> dict:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    budget = {"train.batch_size": batch_size, "train.budget_tokens": 40 * batch_size * 32}
    return WARMUP | budget | {"optimizer.name": name, "optimizer.peak_lr": peak_lr} | dotted


# Every optimizer, and each feature that can change the numbers of a run.
RUNS = {
    "adam, batch size 1": _run("adam", 1, 0.01),
    "adamw, batch size 4, accumulation, clipping": _run(
        "adam", 4, 0.01, train__microbatch_size=2, optimizer__clip_norm=0.5, optimizer__weight_decay=0.1
    ),
    "adam, batch size 16, 8 devices by data": _run("adam", 16, 0.01, mesh__data=8),
    "sgd, batch size 1, bfloat16 weights, stochastic rounding": _run(
        "sgd", 1, 0.3, model__param_dtype="bfloat16", optimizer__rounding="stochastic"
    )
    | NO_B1
    | NO_B2,
    "momentum, batch size 4, weight average": _run("momentum", 4, 0.1, optimizer__weight_average_tokens=1000.0) | NO_B2,
    "heavy_ball, batch size 16, 8 devices by fsdp": _run(
        "heavy_ball", 16, 0.03, optimizer__nesterov=True, mesh__data=1, mesh__fsdp=8
    )
    | NO_B2,
    "sign_sgd, batch size 1, 8 devices by tensor": _run("sign_sgd", 1, 0.001, mesh__tensor=8)
    | EIGHT_HEADS
    | NO_B1
    | NO_B2,
    "signum, batch size 1, 8 devices by sequence": _run("signum", 1, 0.001, mesh__sequence=8) | NO_B2,
    "lion, batch size 4": _run("lion", 4, 0.001),
    "muon, batch size 4": _run("muon", 4, 0.02, optimizer__embed_lr=0.01),
    "adafactor, batch size 1": _run("adafactor", 1, 0.02) | NO_B1,
    "adafactor_power, batch size 4 to 16": _run(
        "adafactor_power", 4, 0.02, train__batch_size_schedule="2560:16", train__batch_size_lr_rule="sqrt"
    )
    | NO_B1
    | NO_B2,
    "schedule_free_sgd, batch size 4": _run("schedule_free_sgd", 4, 0.3, optimizer__schedule="constant")
    | NO_B1
    | NO_B2,
    "schedule_free_adamw, batch size 1": _run("schedule_free_adamw", 1, 0.01, optimizer__schedule="constant") | NO_B1,
}
LANES = [{"optimizer.peak_lr": 0.003 * 2**i, "train.seed": i} for i in range(4)]


def cpu() -> str:
    """Return the vector extensions of this CPU, on which XLA's code depends."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return " ".join(sorted(flag for flag in flags if flag.startswith(("avx", "amx", "fma"))))


def losses(directory: Path) -> list[float]:
    """Return the training losses at RECORD_STEPS, as far as the run has them, and the final validation loss."""
    records = runs.numbers(directory)
    by_step = {record["step"]: record["loss_nats"] for record in records if record["kind"] == "train"}
    steps = [step if step in by_step else max(by_step) for step in RECORD_STEPS]
    return [by_step[step] for step in steps] + [records[-1]["loss_nats"]]


def training_numbers(home: Path, path: Path) -> dict[str, list[float]]:
    """Train every run of RUNS and four lanes; return their losses by name."""
    found = {}
    for number, (name, changes) in enumerate(RUNS.items()):
        runs.trained(home, path / str(number), changes)
        found[name] = losses(path / str(number))
    return found | lane_numbers(home, path)


def lane_numbers(home: Path, path: Path) -> dict[str, list[float]]:
    from smallbatch.runs.run_dir import RunDir
    from smallbatch.training import run
    from smallbatch.training.lanes import train_group
    from smallbatch.training.trainer import Run

    base = _run("adam", 2, 0.01)
    plans = [run.make_plan(runs.tiny_config(home, base | changes)) for changes in LANES]
    paths = [path / f"lane{i}" for i in range(len(plans))]
    for one in paths:
        one.mkdir(parents=True)
    dataset = run.prepare.prepare(plans[0].data)
    members = [Run(plan, RunDir(one)) for plan, one in zip(plans, paths, strict=True)]
    train_group(members, path / "lanes", dataset, 4, 1, 3600.0, lambda positions: False)
    return {f"lane {i} of 4": losses(one) for i, one in enumerate(paths)}


def report_numbers() -> dict[str, list]:
    """Return every number in the tables of the report on a synthetic sweep and on the published files."""
    from smallbatch.analysis.analyze import analyze
    from smallbatch.analysis.read import columns
    from smallbatch.analysis.read.run_table import joined

    rng = np.random.default_rng(0)
    methods = []
    for arm, floor_nats in (("adam", 3.0), ("sgd", 3.2)):
        basin = grids.Basin(floor_nats=floor_nats, noise=0.003)
        methods.append(grids.table_of(grids.basin_cells(basin, [1, 8, 64], range(-13, -4), range(3), rng), arm=arm))
    tables = {"synthetic": joined(methods)}
    files = {
        "marek2025_adam_tuned.csv": "learning_rate=peak_lr,b1,t2_tokens",
        "marek2025_best_loss.csv": "arm=optimizer",
        "marek2025_fixed_b2_vs_fixed_t2.csv": "",
    }
    for file, names in files.items():
        tables[file] = columns.read(Path(__file__).parent / "data" / file, names)
    found = {}
    for name, table in tables.items():
        for result in analyze(table).tables.values():
            if result.rows:
                found[f"{name}: {result.name}"] = [_numeric(row.values()) for row in result.rows]
    return found


def _numeric(values) -> list[float]:
    return [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]


@pytest.fixture(scope="module")
def recorded() -> dict:
    return json.loads((GOLDEN / "training.json").read_text())


@pytest.fixture(scope="module")
def trained(home, tmp_path_factory) -> dict[str, list[float]]:
    return training_numbers(home, tmp_path_factory.mktemp("golden"))


def test_tiny_runs_have_the_recorded_losses(trained, recorded):
    rtol = SAME_CPU_RTOL if cpu() == recorded["cpu"] else OTHER_CPU_RTOL
    assert list(trained) == list(recorded["losses"])
    for name, losses_nats in trained.items():
        np.testing.assert_allclose(losses_nats, recorded["losses"][name], rtol=rtol, err_msg=name)


def test_the_report_has_the_recorded_numbers():
    recorded = json.loads((GOLDEN / "report.json").read_text())
    found = report_numbers()
    assert found.keys() == recorded.keys()
    for name, rows in found.items():
        assert len(rows) == len(recorded[name]), name
        for ours, theirs in zip(rows, recorded[name], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12, err_msg=name)


if __name__ == "__main__":
    import tempfile

    import conftest  # noqa: F401 (eight devices)
    import jax

    assert jax.device_count() == 8  # starts JAX with them
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        (base / "home").mkdir()
        runs.write_jsonl(base / "home" / "corpus.jsonl", runs.sentences(300))
        training = {"cpu": cpu(), "losses": training_numbers(base / "home", base / "runs")}
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "training.json").write_text(json.dumps(training, indent=1) + "\n")
    (GOLDEN / "report.json").write_text(json.dumps(report_numbers()) + "\n")
    sys.exit(0)
