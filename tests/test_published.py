"""The report reproduces the results of papers from their published numbers."""

import subprocess
import sys
from pathlib import Path

import pytest

from smallbatch.files.json_files import read as read_json

DATA = Path(__file__).parent / "data"


def summary(out: Path, file: str, *words: str) -> dict:
    command = [sys.executable, "-m", "smallbatch.report", f"--csv={DATA / file}", f"--out={out}", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return read_json(out / "summary.json")


@pytest.fixture(scope="module")
def best_loss(tmp_path_factory):
    return summary(tmp_path_factory.mktemp("best"), "marek2025_best_loss.csv", "--columns=arm=optimizer")


def test_sgd_trails_adam_by_0_127_nats_at_batch_size_1(best_loss):
    (row,) = (r for r in best_loss["gaps"] if {r["arm"], r["minus_arm"]} == {"sgd", "adam"} and r["batch_size"] == 1)
    assert abs(row["gap_nats"]) == pytest.approx(0.127, abs=5e-4)
    gaps = best_loss["findings"]["Gaps between methods"]
    assert any(text.startswith("sgd minus adam: ") and "the smallest is +0.127 nats at 1;" in text for text in gaps)


def test_muon_is_below_adam_at_every_batch_size(best_loss):
    rows = [r for r in best_loss["gaps"] if {r["arm"], r["minus_arm"]} == {"muon", "adam"}]
    signs = [1 if r["arm"] == "muon" else -1 for r in rows]
    assert len(rows) == 6
    assert all(sign * r["gap_nats"] < 0 for sign, r in zip(signs, rows, strict=True))


def test_adam_is_best_at_batch_size_1(tmp_path):
    found = summary(tmp_path, "marek2025_adam_tuned.csv", "--columns=learning_rate=peak_lr,b1,t2_tokens")
    losses = {row["batch_size"]: row["best_run_loss_nats"] for row in found["equal_flops"]}
    assert losses == {
        1: 3.679942, 4: 3.709871, 16: 3.716938, 64: 3.716591, 256: 3.735875, 1024: 3.926278, 4096: 5.023688
    }  # fmt: skip
    lowest = found["findings"]["Best batch size"][0]
    assert lowest.startswith("The lowest loss is 3.680 nats, with all runs at batch size 1 ")


def test_a_fixed_b2_costs_0_167_nats_at_16_and_under_0_01_at_128(tmp_path):
    rows = summary(tmp_path, "marek2025_fixed_b2_vs_fixed_t2.csv")["gaps"]
    assert {(row["arm"], row["minus_arm"]) for row in rows} == {("t2_tokens 10M", "b2 0.95")}
    gap = {row["batch_size"]: -row["gap_nats"] for row in rows}
    assert gap[16] == pytest.approx(0.167, abs=5e-4)
    assert 0 < gap[128] < 0.01
    assert list(gap) == [16, 32, 64, 128, 256, 512, 1024]


def test_critical_batch_sizes_are_within_2_percent_of_zhang_et_al(tmp_path):
    found = summary(
        tmp_path,
        "zhang2024_steps_to_target.csv",
        "--columns=loss_nats=target_loss_nats,params=n_params_millions,setting=n_params_millions",
        "--overhead_frac=0.2",
        "--reference_batch_size=256",
    )
    published = {85: 745, 151: 955, 302: 1394, 604: 1889, 1200: 2533}
    rows = {row["params"]: row for row in found["critical_batch"]}
    assert rows.keys() == published.keys()
    for params, row in rows.items():
        assert row["critical_batch_size"] == pytest.approx(published[params], rel=0.02)
        assert row["critical_batch_size_low"] < published[params] < row["critical_batch_size_high"]
        assert "1.2x perfect scaling from batch size 256" in row["definition"]
    (law,) = found["critical_batch_laws"]
    assert law["against"] == "params" and 0.46 <= law["exponent"] <= 0.47
    assert law["exponent_low"] < 0.468 < law["exponent_high"]
