"""The contents of a checkpoint besides arrays, and their JSON form: `dataclasses.asdict` and `Saved.from_json`."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smallbatch.errors import UserError
from smallbatch.plan.plan import Plan
from smallbatch.runs.run_dir import RunDir
from smallbatch.training.metrics import MetricsProgress


@dataclass(frozen=True)
class SavedRun:
    """What a checkpoint stores of one run."""

    fingerprint: str
    records_sha256: str  # of its records so far, which contain wall-clock times and so are unique; "" outside groups
    metrics: MetricsProgress

    @classmethod
    def of(cls, plan: Plan, workdir: RunDir, metrics: MetricsProgress, in_group: bool) -> "SavedRun":
        return cls(plan.fingerprint, _records_sha256(workdir, metrics.records) if in_group else "", metrics)

    def is_continued_in(self, workdir: RunDir) -> bool:
        """Return whether the records in a run directory begin with those of the checkpoint."""
        return _records_sha256(workdir, self.metrics.records) == self.records_sha256


@dataclass(frozen=True)
class Saved:
    """What a checkpoint stores of the runs of a program."""

    dataset_sha256: str
    noise_scale_from: str  # see `Plan.noise_scale_from`
    program_memory_bytes: int = 0
    runs: list[SavedRun | None] = field(default_factory=list)  # None: the run had ended

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Saved":
        runs = [run and SavedRun(**run | {"metrics": MetricsProgress(**run["metrics"])}) for run in values["runs"]]
        fields: dict[str, Any] = values | {"runs": runs}
        return cls(**fields)

    def check_same(self, ours: "Saved", fingerprints: dict[int, str], directory: Path) -> None:
        """Raise UserError if a checkpoint is not of these runs, {position: fingerprint}, and their dataset."""
        pairs = [("dataset", "dataset_sha256", self.dataset_sha256, ours.dataset_sha256)]
        for position, fingerprint in fingerprints.items():
            if run := self.runs[position]:
                pairs.append(("config", "fingerprint", run.fingerprint, fingerprint))
        for what, key, saved, here in pairs:
            if saved != here:
                raise UserError(
                    f"the checkpoint in {directory} belongs to another {what} (its {key} is {saved[:12]}, not "
                    f"{here[:12]}); choose another --workdir, or delete it"
                )
        if self.noise_scale_from != ours.noise_scale_from:
            raise UserError(
                f"this run estimates the gradient noise scale from {self.noise_scale_from}, but on these devices it "
                f"would be from {ours.noise_scale_from}; use as many devices as before, or start another run with "
                "train.diagnostics=False"
            )


def _records_sha256(workdir: RunDir, count: int) -> str:
    """Return a digest of the first `count` records of a run."""
    lines = workdir.metrics.read_bytes().splitlines(keepends=True) if workdir.metrics.exists() else []
    return hashlib.sha256(b"".join(lines[:count])).hexdigest()
