"""Synthetic sweep directories with known optima, for tests of the analysis; written by the functions of real runs."""

import dataclasses
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from smallbatch import config as configs
from smallbatch.analysis.read.run_table import Run, RunTable
from smallbatch.analysis.stats.intervals import LEVEL
from smallbatch.runs.records import MetricsWriter, Result, write_json, write_result

CONTEXT_TOKENS = 256
FLOPS_PER_TOKEN = 6e6
BUDGET_TOKENS = 2**20


@dataclass
class Cell:
    """A cell to write: its overrides of the base config, and its result."""

    values: dict[str, Any]
    loss_nats: float | None = None
    status: str = "done"  # | diverged | missing | failed | cut | stopped
    curve: Callable[[np.ndarray], np.ndarray] | None = None  # training loss at fractions of the budget
    records: int = 20
    validations: int = 0
    tokens_per_sec: float = 1e5
    extra: dict[str, Callable[[float], float]] = field(default_factory=dict)  # optional fields of a train record


def base() -> dict[str, Any]:
    return configs.resolved(configs.quickstart())


def nested(changes: dict[str, Any]) -> dict[str, Any]:
    config = base()
    for key, value in changes.items():
        section, name = key.split(".")
        config[section][name] = value
    return config


def write_sweep(path: Path, cells: list[Cell], name: str = "synthetic", **grid: Any) -> Path:
    """Write a sweep directory: grid.json and the run directory of every cell that is not missing."""
    path.mkdir(parents=True, exist_ok=True)
    listed = [{"id": f"{i:06x}", "values": cell.values} for i, cell in enumerate(cells)]
    swept = sorted({key for cell in cells for key in cell.values})
    write_json(
        path / "grid.json", {"format": 1, "name": name, "swept": swept, "config": base(), "cells": listed, **grid}
    )
    for cell, entry in zip(cells, listed, strict=True):
        write_run(path / "cells" / entry["id"], cell)
    return path


def write_run(directory: Path, cell: Cell) -> None:
    """Write the files that a run with the cell's status leaves."""
    if cell.status == "missing":
        return
    directory.mkdir(parents=True)
    config = nested(cell.values)
    write_json(directory / "config.json", config)
    if cell.status == "failed":
        write_json(directory / "failed.json", {"error": "out of memory", "attempts": 3})
        return
    if cell.status == "skipped":
        write_json(directory / "skipped.json", {"error": "a lower learning rate diverged"})
        return
    if cell.status == "cut":  # a cut cell also has the result of the stopped run
        write_json(directory / "cut.json", {"tokens": BUDGET_TOKENS // 4, "validation_loss_nats": cell.loss_nats})
        cell = dataclasses.replace(cell, status="stopped")
    peak_lr = config["optimizer"]["peak_lr"]
    write_json(directory / "plan.json", {"stages": [{"hyperparams": {"peak_lr": peak_lr}}]})
    _write_metrics(directory / "metrics.jsonl", cell, config)
    write_result(directory / "result.json", _result(cell, config))


def _write_metrics(path: Path, cell: Cell, config: dict[str, Any]) -> None:
    batch_size, budget = config["train"]["batch_size"], config["train"]["budget_tokens"]
    end = cell.loss_nats if cell.loss_nats is not None else 5.0
    curve = cell.curve or (lambda share: end + 2.0 * (1 - share) ** 2)
    with closing(MetricsWriter(path)) as writer:
        for i in range(1, cell.records + 1):
            share = i / cell.records
            tokens = round(budget * share)
            place = {
                "step": round(tokens / batch_size / CONTEXT_TOKENS),
                "tokens": tokens,
                "flops": tokens * FLOPS_PER_TOKEN,
            }
            middle = np.array([(i - 0.5) / cell.records])
            diverges = cell.status == "diverged" and i == cell.records
            writer.write(
                {"kind": "train", **place, "loss_nats": None if diverges else float(curve(middle)[0]),
                 "learning_rate": 0.001, "secs": tokens / cell.tokens_per_sec, "tokens_per_sec": cell.tokens_per_sec,
                 **{name: f(share) for name, f in cell.extra.items()}}
            )  # fmt: skip
            if cell.validations and i % (cell.records // cell.validations) == 0:
                writer.write(
                    {"kind": "validation", **place, "loss_nats": float(curve(np.array([share]))[0]),
                     "bits_per_byte": None, "secs": tokens / cell.tokens_per_sec}
                )  # fmt: skip


def _result(cell: Cell, config: dict[str, Any]) -> Result:
    budget, batch_size = config["train"]["budget_tokens"], config["train"]["batch_size"]
    diverged = cell.status == "diverged"
    return Result(
        status=cell.status, validation_loss_nats=None if diverged else cell.loss_nats, bits_per_byte=None,
        perplexity=None, average_validation_loss_nats=None, train_loss_nats=None, tokens=budget,
        flops=budget * FLOPS_PER_TOKEN, tokens_per_sec=cell.tokens_per_sec, mfu=None,
        optimizer_steps=round(budget / batch_size / CONTEXT_TOKENS), secs=budget / cell.tokens_per_sec + 10.0,
        peak_memory_bytes=2**30, program_memory_bytes=2**20 * (500 + batch_size),
        fingerprint="ab" * 32, dataset_sha256="cd" * 32,
        diverged_at_step=7 if diverged else None, sample=None, params=851_968, seed=config["train"]["seed"],
        batch_size=batch_size, device={"platform": "cpu", "kind": "cpu", "count": 1},
        started="2026-01-01T00:00:00+00:00", finished="2026-01-01T00:01:00+00:00",
        versions={"smallbatch": "0.1.0", "jax": "0.10.2"}, git_sha="ef" * 20, git_dirty=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Basin:
    """A loss with a known optimum: floor(B) + curvature (log2 lr - log2 lr*(B))^2, with lr* = lr_1 B^exponent."""

    floor_nats: float = 2.2
    per_doubling_nats: float = 0.05  # of the batch size, from B = 1
    curvature: float = 0.03
    lr_1: float = 0.002
    exponent: float = 0.25
    noise: float = 0.0  # standard deviation of log loss over seeds

    def best_lr(self, batch_size: float) -> float:
        return self.lr_1 * batch_size**self.exponent

    def floor(self, batch_size: float) -> float:
        return self.floor_nats + self.per_doubling_nats * np.log2(batch_size)

    def loss(self, batch_size: float, peak_lr: float, rng: np.random.Generator | None = None) -> float:
        truth = self.floor(batch_size) + self.curvature * np.log2(peak_lr / self.best_lr(batch_size)) ** 2
        return float(truth * np.exp(self.noise * rng.standard_normal()) if rng else truth)


def basin_cells(basin: Basin, batch_sizes, log2_lrs, seeds, rng=None, **values: Any) -> list[Cell]:
    """Return the cells of a full grid of batch sizes x learning rates x seeds over a basin."""
    return [
        Cell(
            {"train.batch_size": b, "optimizer.peak_lr": 2.0**k, "train.seed": s, **values},
            basin.loss(b, 2.0**k, rng),
        )
        for b in batch_sizes
        for k in log2_lrs
        for s in seeds
    ]


def replaced(cell: Cell, **changes: Any) -> Cell:
    return dataclasses.replace(cell, **changes)


def table_of(cells: list[Cell], setting: str = "synthetic", arm: str = "adam") -> RunTable:
    """Return cells as a run table, without files; its hyperparameters are the keys that the cells vary."""
    varied = {key for cell in cells for key in cell.values} - {"train.batch_size", "train.seed"}
    runs = []
    for cell in cells:
        loss = np.inf if cell.status == "diverged" else np.nan if cell.loss_nats is None else cell.loss_nats
        size = float(cell.values["train.batch_size"])
        runs.append(
            Run(setting=setting, arm=arm, batch_size=size, seed=cell.values.get("train.seed", 0), status=cell.status,
                point=tuple((key, cell.values[key]) for key in sorted(varied)), loss_nats=loss,
                learning_rate=cell.values.get("optimizer.peak_lr", np.nan), tokens=BUDGET_TOKENS,
                steps=BUDGET_TOKENS / CONTEXT_TOKENS / size, flops=BUDGET_TOKENS * FLOPS_PER_TOKEN)
        )  # fmt: skip
    return RunTable(tuple(runs))


def run(arm: str, batch_size: float, loss_nats: float, **changes) -> Run:
    """Return a run of a table; fields that are not given are unknown."""
    known = {"setting": "grid", "seed": 0, "point": (), "status": "done"} | changes
    return Run(arm=arm, batch_size=batch_size, loss_nats=loss_nats, **known)


def coverage(hits: int, repeats: int) -> bool:
    """Return whether intervals have coverage LEVEL: hits are not below the 0.1% quantile of their distribution."""
    return hits >= binom.ppf(0.001, repeats, LEVEL)
