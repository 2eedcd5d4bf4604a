"""Check user paths: expand `~`, reject remote addresses, and raise UserError instead of OSError.

Every path from a flag, a config value or a Python call goes through `local`.
"""

import os
import re
import stat
from pathlib import Path

from smallbatch.errors import UserError

# gs://b/r, or gs:/b/r after pathlib. HOST:/DIR of NFS and ssh has the same form.
REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local(path: str | os.PathLike[str], name: str = "") -> Path:
    """Return a path with `~` and `~user` expanded.

    name: its flag or config key, such as "--workdir", for the error.

    Raises:
        UserError: the path is remote, has an unknown user, or is invalid.
    """
    text = os.fspath(path)
    shown = f"{name}={text!r}" if name else f"the path {text!r}"
    if REMOTE.match(text):
        raise UserError(
            f"{shown} is a remote address, but only local paths are supported. Mount the bucket "
            "(gcsfuse, s3fs, rclone mount) and give the path of the mount, or copy the files"
        )
    if "\0" in text:
        raise UserError(f"{shown} contains a null byte; remove it")
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise UserError(f"{shown}: {text.partition('/')[0]} has no home directory; write the full path")
    return Path(expanded)


def status(path: Path) -> os.stat_result | None:
    """Return os.stat of a path, or None if it does not exist. Raises UserError if it is not accessible.

    For a directory without search permission or a name that is too long, `Path.exists` and similar methods raise
    OSError (Python 3.11) or wrongly return False (3.12).
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot access {path}: {reason}; check the path and its permissions") from error


def exists(path: Path) -> bool:
    """Return whether a path exists. Raises UserError if it is not accessible."""
    return status(path) is not None


def is_file(path: Path) -> bool:
    """Return whether a path is a file. Raises UserError if it is not accessible."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_dir(path: Path) -> bool:
    """Return whether a path is a directory. Raises UserError if it is not accessible."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def entries(directory: Path) -> list[Path]:
    """Return the entries of a directory; [] if it does not exist. Raises UserError if it cannot be read."""
    try:
        return sorted(directory.iterdir()) if is_dir(directory) else []
    except OSError as error:
        raise UserError(f"cannot read {directory}: {error.strerror or error}; check its permissions") from error


def resolved(path: Path) -> Path:
    """Return the absolute path with links resolved. Raises UserError if that fails."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, in Python 3.11 and 3.12
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot access {path}: {reason}; check the path and its permissions") from error


def check_writable(directory: Path, fix: str) -> None:
    """Raise UserError, with `fix`, if a directory is not writable and cannot be created. Writes nothing."""
    nearest = directory
    while not exists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not is_dir(nearest):
        raise UserError(f"cannot write in {directory}: {nearest} is not a directory; {fix}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write in {directory}: no permission in {nearest}; {fix}")
