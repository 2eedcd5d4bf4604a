"""What a run leaves behind: metrics.jsonl and result.json, with one schema, checked on both sides.

One idea: a file is either whole or not there. JSON files are replaced by rename; metrics.jsonl only grows,
and only its last line can be cut short, by a crash, which every reader forgives.

Nothing here imports JAX: results are read on a laptop, months later.
"""

import dataclasses
import errno
import functools
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

# Fields of a record in metrics.jsonl, by kind. step: finished optimizer updates. tokens: step x batch size x
# context. flops: spent on training so far. loss_nats: mean per token, over the training tokens since the last
# train record or over the validation set; null if not finite. bits_per_byte: null if the bytes are unknown or
# the tokenizer lost text.
FIELDS = {
    "train": ("kind", "step", "tokens", "flops", "loss_nats", "learning_rate", "secs", "tokens_per_sec"),
    "validation": ("kind", "step", "tokens", "flops", "loss_nats", "bits_per_byte", "secs"),
}
# Fields that a record may have besides: of averages of the weights, of clipping and of train.diagnostics. Means over
# the updates since the last train record; null where there is none (a cosine without a predecessor).
OPTIONAL_FIELDS = {
    "train": (
        *("clipped_frac", "grad_norm", "update_norm", "update_rms", "update_cosine", "path_per_token"),
        *("grad_signal_sq", "grad_noise_sq", "noise_scale_tokens"),
    ),
    "validation": ("average_loss_nats",),
}
WALL_CLOCK_FIELDS = ("secs", "tokens_per_sec")  # all else is the same in every repetition of a run
MAYBE_FINITE_FIELDS = {"loss_nats", "bits_per_byte", *OPTIONAL_FIELDS["train"], *OPTIONAL_FIELDS["validation"]}

MAYBE_NULL_FIELDS = {*MAYBE_FINITE_FIELDS, "tokens_per_sec"}

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # what more space mends
LONGEST_RECORD_BYTES = 10_000
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace a file as a whole: written beside it, fsynced, renamed. Raises UserError when it cannot be."""
    path = Path(path)
    # Unlike a process's number, no other machine or container that shares the directory has this one.
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            with open(beside, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
            _fsync_directory(path.parent)
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot("write", path, error) from error


def write_json(path: str | Path, value: Any) -> None:
    """Replace a JSON file as a whole; NaN and infinities are refused, for they are not JSON."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return a value as the text of a JSON file. Raises ValueError for NaN and infinities, which are not JSON."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: str | Path) -> Any:
    """Return what a JSON file holds. Raises UserError when it is missing or is not JSON."""
    return json_files.read(path)


class MetricsWriter:
    """Append records to metrics.jsonl, each with one write: a crash cuts short the last line at most."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self.count = len(_complete_lines(self._path))  # records in the file
        rewind(self._path, self.count)  # cuts off a line that a crash left unfinished
        try:
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)
        except OSError as error:
            raise _cannot("write", self._path, error) from error

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; its keys are those of FIELDS for its kind, and any of OPTIONAL_FIELDS."""
        if not _has_fields(record):
            raise ValueError(f"a {record['kind']} record has {sorted(record)}, not {FIELDS[record['kind']]}")
        finite = {name: _finite(value) if name in MAYBE_FINITE_FIELDS else value for name, value in record.items()}
        line = (json.dumps(finite, allow_nan=False) + "\n").encode()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "the line was cut short: is the disk full?")
        except OSError as error:
            raise _cannot("write", self._path, error) from error
        self.count += 1

    def sync(self) -> None:
        """Return when all records are on the disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _cannot("write", self._path, error) from error

    def close(self) -> None:
        self._file.close()


def rewind(path: str | Path, count: int) -> None:
    """Keep the first `count` records of metrics.jsonl. Raises UserError if there are fewer, or a line is damaged."""
    path = Path(path)
    lines = _complete_lines(path)
    if len(lines) < count:
        raise UserError(
            f"{path} has {len(lines)} records, but the checkpoint was saved after {count}: the file lost "
            "records; restore it from a copy, or start in another run directory"
        )
    for _ in _records(path, lines[:count]):  # check every kept line, so that no damaged line stays in the file
        pass
    kept = b"".join(lines[:count])
    if paths.exists(path) and path.stat().st_size != len(kept):
        write_bytes(path, kept)


def read_metrics(path: str | Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, of one kind or all. Raises UserError for what is not a record."""
    path = paths.local(path)
    if not paths.exists(path):
        raise UserError(f"there is no file {path}; is this a run directory?")
    return [record for record in _records(path, _complete_lines(path)) if kind in (None, record["kind"])]


def _records(path: str | Path, lines: list[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the records in lines of metrics.jsonl. Raises UserError with the number of the first invalid line."""
    for number, record in enumerate(_at_once(lines) or map(_parsed, lines), 1):
        if problem := _problem(record):
            raise UserError(
                f"{path}:{number} is not a record of a run: {problem}; restore the file from a copy, or restart the "
                "run in another directory"
            )
        yield record


def read_curve(directory: str | Path, kind: str = "train") -> dict[str, list[Any]]:
    """Return the records of a kind, of a run directory, as columns: pandas.DataFrame(...) makes a table of them.

    What is null in the file is NaN.
    """
    rows = read_metrics(paths.local(directory) / "metrics.jsonl", kind)
    names = dict.fromkeys(name for row in rows for name in row if name != "kind")
    return {name: [math.nan if row.get(name) is None else row[name] for row in rows] for name in names}


def last_tokens_and_secs(path: Path) -> tuple[int, float]:
    """Return the progress of a run from its last record, (0, 0.0) without one; reads only the end of the file."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LONGEST_RECORD_BYTES))
            record = json_files.parse(file.read().split(b"\n")[-2])
    except (OSError, IndexError, ValueError):  # not there yet, empty, or not a whole line
        return 0, 0.0
    if json_files.mismatch(record, {"tokens": int, "secs": float}):
        return 0, 0.0
    return record["tokens"], record["secs"]


def _at_once(lines: list[bytes]) -> list[Any]:
    """Return what the lines hold, parsed as one array, three times as fast as one by one; [] if a line is no JSON."""
    try:
        records = json_files.parse_any(b"[" + b",".join(lines) + b"]", parse_constant=_not_json)
    except ValueError:
        return []
    return records if len(records) == len(lines) else []


def _parsed(line: bytes) -> Any:
    """Return what a line holds, or the error that it is not JSON."""
    try:
        return json_files.parse(line)
    except ValueError as error:
        return error


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run came to. None stands for unknown, and for a loss that is not finite."""

    status: str  # done | diverged | stopped
    validation_loss_nats: float | None
    bits_per_byte: float | None
    perplexity: float | None  # exp(validation_loss_nats)
    average_validation_loss_nats: float | None  # of the average of the weights, if one is kept
    train_loss_nats: float | None
    tokens: int
    flops: float
    tokens_per_sec: float | None
    mfu: float | None  # share of the devices' peak (peaks.py) that training took
    optimizer_steps: int
    secs: float
    peak_memory_bytes: int | None  # high-water mark of the process; None if it trained other runs too
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
    directory: Path | None = field(default=None, compare=False)  # it was read from; not in the file

    def curve(self, kind: str = "train") -> dict[str, list[Any]]:
        """Return the run's records of a kind as columns (see `read_curve`)."""
        if self.directory is None:
            raise ValueError("a result that was not read from a run directory has no curve")
        return read_curve(self.directory, kind)


STATUSES = ("done", "diverged", "stopped")
FORMER_STATUSES = {"preempted": "stopped"}  # {status in files of earlier versions: current status}


def write_result(path: str | Path, result: Result) -> None:
    """Write result.json, which marks a run as ended."""
    values = dataclasses.asdict(result)
    del values["directory"]
    write_json(path, {name: _finite(value) for name, value in values.items()})


def read_result(path: str | Path) -> Result:
    """Return a run's result. Raises UserError when a key is missing, unknown or of the wrong type."""
    path = paths.local(path)
    values = read_json(path)
    types = typing.get_type_hints(Result)
    del types["directory"]
    if not isinstance(values, dict):
        raise UserError(f"{path} is not the result of a run: it holds no JSON object")
    for name in ("validation_loss_se_nats", "program_memory_bytes"):  # missing from files of earlier versions
        values.setdefault(name, None)
    if strange := sorted(values.keys() ^ types.keys()):
        state = ", ".join(f"{key} is {'unknown' if key in values else 'missing'}" for key in strange)
        raise UserError(f"{path} is not a result of this version of smallbatch: {state}")
    if problem := json_files.mismatch(values, types):
        raise UserError(f"{path} is damaged: {problem}; restore it from a copy, or delete it to run again")
    values["status"] = FORMER_STATUSES.get(values["status"], values["status"])
    if values["status"] not in STATUSES:
        raise UserError(f"{path} is damaged: status is {values['status']!r}, not one of {', '.join(STATUSES)}")
    return Result(**values, directory=path.parent)


def environment() -> dict[str, Any]:
    """Return {versions, git_sha, git_dirty} of the running code; git's are None outside a checkout."""
    versions = {"smallbatch": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package.removesuffix("-checkpoint")] = metadata.version(package)
    root = Path(__file__).resolve().parents[2]
    sha = dirty = None
    if _git(root, "rev-parse", "--show-toplevel") == str(root):  # not some repository that holds our environment
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
    """Return the lines that end in a newline; the rest, if any, was cut short by a crash."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _cannot("read", path, error) from error
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def _has_fields(record: dict[str, Any]) -> bool:
    return _are_fields(record["kind"], tuple(record))


def _problem(record: Any) -> str:
    """Return the reason why a JSON value, or the error from parsing it, is not a record; "" if it is one."""
    if isinstance(record, ValueError):
        return str(record)
    if not isinstance(record, dict) or record.get("kind") not in tuple(FIELDS):
        return json_files.mismatch(record, {"kind": str}) or f"its kind is {record['kind']!r}"
    if not _has_fields(record):
        return f"its fields are {', '.join(record)}"
    wrong = _not_a_number(tuple(record), tuple(map(type, record.values())))
    return f"{wrong} is {str(record[wrong])[:40]}" if wrong else ""


@functools.lru_cache(maxsize=256)  # the records of a sweep have the same fields a million times
def _are_fields(kind: str, names: tuple[str, ...]) -> bool:
    return set(FIELDS[kind]) <= set(names) <= {*FIELDS[kind], *OPTIONAL_FIELDS[kind]}


@functools.lru_cache(maxsize=256)
def _not_a_number(names: tuple[str, ...], types: tuple[type, ...]) -> str:
    """Return the first field with a value that is not a number, or not null where null is allowed; "" if none."""
    for name, kind in zip(names, types, strict=True):
        if kind not in (int, float) and name != "kind" and not (kind is type(None) and name in MAYBE_NULL_FIELDS):
            return name
    return ""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _not_json(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot(verb: str, path: str | Path, error: OSError) -> UserError:
    full = verb == "write" and error.errno in FULL
    fix = "free some space or choose another directory" if full else "check the path and its permissions"
    return UserError(f"cannot {verb} {path}: {error.strerror or error}; {fix}")
