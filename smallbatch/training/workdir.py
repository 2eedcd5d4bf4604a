"""The run directory: whose it is, whether it is finished, and that only one process writes in it.

config.json    every key, as it was asked for      metrics.jsonl   one record a line
plan.json      every derived number                result.json     there when the run has ended
tokenizer/     what decodes its samples            checkpoints/    the last two
"""

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from smallbatch import config as configs
from smallbatch import records
from smallbatch.errors import UserError


class Locked(UserError):
    """Another process is training in the run directory."""


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The paths of a run directory."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"


def default_path(config: configs.Config, config_file: str | None) -> Path:
    """Return runs/<name of the config file>-<first 12 characters of the fingerprint>."""
    name = Path(config_file.partition(":")[0]).stem if config_file else "quickstart"
    return Path("runs") / f"{name}-{configs.fingerprint(config)[:12]}"


def check_owner(workdir: Workdir, config: configs.Config) -> None:
    """Raise UserError if the directory holds another config's run, with the keys that differ."""
    if not workdir.config.exists():
        return
    theirs = records.read_json(workdir.config)
    if differing := configs.differences(theirs, config.to_dict()):
        raise UserError(
            f"{workdir.path} holds a run of another config ({'; '.join(differing)}: there | here); "
            "choose another --workdir, or delete it"
        )


def finished(workdir: Workdir) -> records.Result | None:
    """Return the result of a run that has nothing left to do."""
    if not workdir.result.exists():
        return None
    result = records.read_result(workdir.result)
    return result if result.status in ("done", "diverged") else None


@contextlib.contextmanager
def claimed(workdir: Workdir, config: configs.Config) -> Iterator[None]:
    """Create the directory with its config.json and hold it for this process. Raises Locked if another holds it."""
    try:
        workdir.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(workdir.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"cannot write in the run directory {workdir.path}: {error.strerror}; choose another --workdir"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when we die
        except BlockingIOError:
            raise Locked(
                f"another process is training in {workdir.path}; wait for it, or choose another --workdir"
            ) from None
        check_owner(workdir, config)
        if not workdir.config.exists():
            records.write_json(workdir.config, configs.resolved(config))
        yield
    finally:
        os.close(lock)
