"""Write and read metrics.jsonl and result.json, checked against one schema, without JAX.

metrics.jsonl: one JSON object per line; its fields are FIELDS and OPTIONAL_FIELDS of its kind.
result.json: the fields of `Result`; null: unknown, or a loss that is not finite.

A JSON file is replaced by renaming, so it is complete or absent. metrics.jsonl is appended to; a crash can cut off its
last line, which readers ignore.
"""

import dataclasses
import errno
import json
import math
import os
import platform
import subprocess
import typing
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from smallbatch import __version__
from smallbatch.errors import UserError
from smallbatch.files import json_files, paths

# step: finished optimizer updates. tokens: tokens trained on so far. flops: FLOPs of training so far. loss_nats: mean
# per token, over the training tokens since the previous train record, or over the validation set. bits_per_byte: null
# if the number of bytes is unknown, or the tokenizer lost text.
FIELDS = {
    "train": ("kind", "step", "tokens", "flops", "loss_nats", "learning_rate", "secs", "tokens_per_sec"),
    "validation": ("kind", "step", "tokens", "flops", "loss_nats", "bits_per_byte", "secs"),
}
# Fields of clipping, train.diagnostics and the weight average. Means over the updates since the previous train record;
# null if undefined (the cosine of the first update).
OPTIONAL_FIELDS = {
    "train": (
        *("clipped_frac", "grad_norm", "update_norm", "update_rms", "update_cosine", "path_per_token"),
        *("grad_signal_sq", "grad_noise_sq", "noise_scale_tokens"),
    ),
    "validation": ("average_loss_nats",),
}
_FIELD_SETS = {kind: (set(names), {*names, *OPTIONAL_FIELDS[kind]}) for kind, names in FIELDS.items()}
WALL_CLOCK_FIELDS = ("secs", "tokens_per_sec")  # all other fields are equal in every repetition of a run
MAYBE_FINITE_FIELDS = {"loss_nats", "bits_per_byte", *OPTIONAL_FIELDS["train"], *OPTIONAL_FIELDS["validation"]}
MAYBE_NULL_FIELDS = {*MAYBE_FINITE_FIELDS, "tokens_per_sec"}
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MAX_RECORD_BYTES = 10_000
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
STATUSES = ("done", "diverged", "stopped")
FORMER_STATUSES = {"preempted": "stopped"}  # {status in files of earlier versions: current status}


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace a file: write a temporary file beside it, fsync, rename. Raises UserError if that fails."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # unique on every machine that shares the disk
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _fsync_directory(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot("write", path, error) from error


def write_json(path: str | Path, value: Any) -> None:
    """Replace a JSON file. Raises ValueError for NaN and infinities."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return a value as the content of a JSON file. Raises ValueError for NaN and infinities."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def plan_hyperparams(plan: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the hyperparameters at the start of a run from its plan.json; older plans have them at the top level.

    Raises: UserError if there are none.
    """
    stages: Any = plan.get("stages") or [{"hyperparams": plan.get("hypers")}]
    if problem := json_files.mismatch(stages, [{"hyperparams": {}}]):
        raise UserError(f"{file} is damaged ({problem}); restore it from a copy")
    return stages[0]["hyperparams"]


class MetricsWriter:
    """Append records to metrics.jsonl, each with one write. A line that a crash cut off is removed first."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self.count = len(_complete_lines(self._path))  # records in the file
        rewind(self._path, self.count)
        try:
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)
        except OSError as error:
            raise _cannot("write", self._path, error) from error

    def write(self, record: dict[str, Any]) -> None:
        """Append one record. Raises ValueError for wrong fields, and UserError if it cannot be written."""
        if not _has_fields(record):
            raise ValueError(f"a {record['kind']} record has {sorted(record)}, not {FIELDS[record['kind']]}")
        finite = {name: _finite(value) if name in MAYBE_FINITE_FIELDS else value for name, value in record.items()}
        line = (json.dumps(finite, allow_nan=False) + "\n").encode()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "only a part of the line was written")
        except OSError as error:
            raise _cannot("write", self._path, error) from error
        self.count += 1

    def sync(self) -> None:
        """Return when all records are on disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _cannot("write", self._path, error) from error

    def close(self) -> None:
        self._file.close()


def rewind(path: str | Path, count: int) -> None:
    """Keep the first `count` records of metrics.jsonl. Raises UserError if there are fewer, or one is invalid."""
    path = Path(path)
    lines = _complete_lines(path)
    if len(lines) < count:
        raise UserError(
            f"{path} has {len(lines)} records, but the checkpoint was saved after {count}; restore the file from a "
            "copy, or start in another run directory"
        )
    for _ in _records(path, lines[:count]):  # raises for an invalid record
        pass
    kept = b"".join(lines[:count])
    if paths.exists(path) and path.stat().st_size != len(kept):
        write_bytes(path, kept)


def read_metrics(path: str | Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, optionally of one kind only. Raises UserError for an invalid record."""
    path = paths.local(path)
    if not paths.exists(path):
        raise UserError(f"there is no file {path}; is this a run directory?")
    return [record for record in _records(path, _complete_lines(path)) if kind in (None, record["kind"])]


def read_curve(directory: str | Path, kind: str = "train") -> dict[str, list[Any]]:
    """Return the records of a run directory as columns, with null as NaN: `pandas.DataFrame(...)` accepts them."""
    rows = read_metrics(paths.local(directory) / "metrics.jsonl", kind)
    names = dict.fromkeys(name for row in rows for name in row if name != "kind")
    return {name: [math.nan if row.get(name) is None else row[name] for row in rows] for name in names}


def last_tokens_and_secs(path: Path) -> tuple[int, float]:
    """Return the progress in the last record of metrics.jsonl; (0, 0.0) if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_RECORD_BYTES))
            record = json_files.parse(file.read().split(b"\n")[-2])
    except (OSError, IndexError, ValueError):  # missing, empty, or a partial line
        return 0, 0.0
    if json_files.mismatch(record, {"tokens": int, "secs": float}):
        return 0, 0.0
    return record["tokens"], record["secs"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of a run. None: unknown, or a loss that is not finite."""

    status: str  # done | diverged | stopped
    validation_loss_nats: float | None
    bits_per_byte: float | None
    perplexity: float | None  # exp(validation_loss_nats)
    average_validation_loss_nats: float | None  # of the average of the weights, if train computes one
    train_loss_nats: float | None
    tokens: int
    flops: float
    tokens_per_sec: float | None
    mfu: float | None  # model FLOPs utilization: training FLOP/s over the devices' peak FLOP/s
    optimizer_steps: int
    secs: float
    peak_memory_bytes: int | None  # of the process; None if it has trained other runs too
    fingerprint: str  # of the config
    dataset_sha256: str
    diverged_at_step: int | None
    sample: str | None
    params: int
    seed: int
    batch_size: int
    device: dict  # platform, kind, count
    started: str  # ISO 8601, UTC
    finished: str
    versions: dict  # this and the next two: see environment()
    git_sha: str | None
    git_dirty: bool | None
    validation_loss_se_nats: float | None = None  # standard error over the sequences of the validation set
    program_memory_bytes: int | None = None  # on one device, from XLA's buffer assignment; for a lane, its share
    directory: Path | None = field(default=None, compare=False)  # where it was read from; not in the file

    def curve(self, kind: str = "train") -> dict[str, list[Any]]:
        """Return the run's records of a kind as columns (see `read_curve`)."""
        if self.directory is None:
            raise ValueError("a result that was not read from a run directory has no curve")
        return read_curve(self.directory, kind)


def write_result(path: str | Path, result: Result) -> None:
    """Write result.json, which marks a run as ended."""
    values = dataclasses.asdict(result)
    del values["directory"]
    write_json(path, {name: _finite(value) for name, value in values.items()})


def read_result(path: str | Path) -> Result:
    """Return a run's result. Raises UserError if a key is missing, unknown or of the wrong type."""
    path = paths.local(path)
    types = typing.get_type_hints(Result)
    del types["directory"]
    values: dict[str, Any] = {"validation_loss_se_nats": None, "program_memory_bytes": None}  # absent in old files
    values |= json_files.read_object(path, {}, "the result of a run")
    if differing := sorted(values.keys() ^ types.keys()):
        problem = ", ".join(f"{key} is {'unknown' if key in values else 'missing'}" for key in differing)
        raise UserError(
            f"{path} is not a result of this version of smallbatch ({problem}); use the version that wrote it, or "
            "delete it and rerun"
        )
    problem = json_files.mismatch(values, types)
    if not problem:
        values["status"] = FORMER_STATUSES.get(values["status"], values["status"])
        if values["status"] not in STATUSES:
            problem = f"status is {values['status']!r}, not one of {', '.join(STATUSES)}"
    if problem:
        raise UserError(f"{path} is damaged: {problem}; restore it from a copy, or delete it and rerun")
    return Result(**values, directory=path.parent)


def environment() -> dict[str, Any]:
    """Return {versions, git_sha, git_dirty} of the running code; git's are None outside a checkout."""
    versions = {"smallbatch": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package.removesuffix("-checkpoint")] = metadata.version(package)
    root = Path(__file__).resolve().parents[2]
    sha = dirty = None
    if _git(root, "rev-parse", "--show-toplevel") == str(root):  # else a repository that contains the installed package
        sha = _git(root, "rev-parse", "HEAD")
        status = _git(root, "status", "--porcelain", "--untracked-files=no")
        dirty = None if status is None else bool(status)
    return {"versions": versions, "git_sha": sha, "git_dirty": dirty}


def _git(directory: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(directory), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _complete_lines(path: str | Path) -> list[bytes]:
    """Return the lines that end in a newline; [] if the file is missing."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _cannot("read", path, error) from error
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def _records(path: str | Path, lines: list[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the records in lines of metrics.jsonl. Raises UserError with the number of an invalid line."""
    for number, line in enumerate(lines, 1):
        record: Any = None
        try:
            record = json_files.parse_any(line)
            problem = _problem(record)
        except ValueError as error:
            problem = str(error)
        if problem:
            raise UserError(
                f"{path}:{number} is not a record of a run: {problem}; restore the file from a copy, or restart the "
                "run in another directory"
            )
        yield record


def _problem(record: Any) -> str:
    """Return why a JSON value is not a record; "" if it is one."""
    if not isinstance(record, dict) or record.get("kind") not in tuple(FIELDS):
        return json_files.mismatch(record, {"kind": str}) or f"its kind is {record['kind']!r}"
    if not _has_fields(record):
        return f"its fields are {', '.join(record)}"
    for name, value in record.items():
        is_number = type(value) is int or (type(value) is float and math.isfinite(value))
        if not (is_number or name == "kind" or (value is None and name in MAYBE_NULL_FIELDS)):
            return f"{name} is {str(value)[:40]}"
    return ""


def _has_fields(record: dict[str, Any]) -> bool:
    required, allowed = _FIELD_SETS[record["kind"]]
    return required <= record.keys() <= allowed


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot(verb: str, path: str | Path, error: OSError) -> UserError:
    full = verb == "write" and error.errno in DISK_FULL
    fix = "free some space or choose another directory" if full else "check the path and its permissions"
    return UserError(f"cannot {verb} {path}: {error.strerror or error}; {fix}")
