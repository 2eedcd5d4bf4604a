"""The run directory: its files, its lock, and the check that it belongs to the config.

All checks run before `write_config` writes config.json, so a usage error writes no config.

config.json    every key, as given                 metrics.jsonl   one record per line
plan.json      every derived number                result.json     exists once the run has ended
tokenizer/     decodes its samples                 checkpoints/    the last two
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from smallbatch import config as configs
from smallbatch.errors import UserError
from smallbatch.files import json_files, paths
from smallbatch.runs import records


class Locked(UserError):
    """Another process is training in the run directory."""


class RunDir:
    """The paths of a run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.plan = path / "plan.json"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.tokenizer = path / "tokenizer"
        self.checkpoints = path / "checkpoints"

    @property
    def has_started(self) -> bool:
        """Whether the directory has a record, a checkpoint or a result of a run."""
        metrics = paths.status(self.metrics)
        return (metrics is not None and metrics.st_size > 0) or paths.exists(self.result) or self.has_checkpoints

    @property
    def has_checkpoints(self) -> bool:
        """Whether the directory has a checkpoint."""
        return any(path.name.isdecimal() for path in paths.entries(self.checkpoints))


def default_path(config: configs.Config, config_file: str | None) -> Path:
    """Return runs/<name of the config file>-<first 12 characters of the fingerprint>."""
    name = Path(config_file.partition(":")[0]).stem if config_file else "quickstart"
    return Path("runs") / f"{name}-{configs.fingerprint(config)[:12]}"


def check_owner(workdir: RunDir, config: configs.Config) -> None:
    """Raise UserError, with the keys that differ, if a run of another config has started in the directory."""
    if paths.exists(workdir.path / "grid.json"):
        raise UserError(
            f"{workdir.path} holds a sweep, not a run; resume it with smallbatch.sweep, or choose another --workdir"
        )
    if not workdir.has_started:
        return
    if not paths.exists(workdir.config):
        result = records.read_result(workdir.result) if paths.exists(workdir.result) else None
        if result is not None and result.fingerprint != configs.fingerprint(config):
            raise UserError(
                f"{workdir.path} holds the result of a run of another config (fingerprint {result.fingerprint[:12]}), "
                "and its config.json is missing; restore config.json, or choose another --workdir"
            )
        # A checkpoint holds the fingerprint of its config. Records do not, and the run would replace them.
        if result is None and not workdir.has_checkpoints:
            raise UserError(
                f"{workdir.path} holds metrics.jsonl without the config.json of its run; restore config.json, or "
                "choose another --workdir"
            )
        return
    theirs = json_files.read_config(workdir.config)
    if unknown := configs.flatten(theirs).keys() - configs.KEY_BY_NAME.keys():
        raise UserError(
            f"{workdir.config} is damaged, or from another version of smallbatch: {configs.unknown_key(min(unknown))}; "
            "restore it from a copy, use the version that wrote it, or choose another --workdir"
        )
    if differing := configs.differences(theirs, config.to_dict()):
        raise UserError(
            f"{workdir.path} holds a run of another config ({'; '.join(differing)}: saved | given); "
            "resume it with --workdir alone, choose another --workdir, or delete it"
        )


def finished(workdir: RunDir) -> records.Result | None:
    """Return the result of a run that is done or has diverged, else None."""
    if not paths.exists(workdir.result):
        return None
    result = records.read_result(workdir.result)
    return result if result.status in ("done", "diverged") else None


@contextlib.contextmanager
def locked(workdir: RunDir, config: configs.Config) -> Iterator[None]:
    """Create the directory and lock it for this process. Raises Locked if another process has the lock."""
    try:
        workdir.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(workdir.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"cannot write in the run directory {workdir.path}: {error.strerror}; choose another --workdir"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases it when the process ends
        except BlockingIOError:
            raise Locked(
                f"another process is training in {workdir.path}; wait until it ends, or choose another --workdir"
            ) from None
        check_owner(workdir, config)
        yield
    finally:
        os.close(lock)


def write_config(workdir: RunDir, config: configs.Config) -> None:
    """Write config.json; an existing one is kept if its run has started, and otherwise replaced.

    The caller has locked the directory and has run all checks.
    """
    if paths.exists(workdir.config) and not workdir.has_started:
        workdir.plan.unlink(missing_ok=True)
        shutil.rmtree(workdir.tokenizer, ignore_errors=True)  # it may belong to another dataset
        workdir.config.unlink(missing_ok=True)
    if not paths.exists(workdir.config):
        records.write_json(workdir.config, configs.resolved(config))
