"""Paths that a user gives: `~` is expanded, addresses of object stores are refused, and probing never raises OSError.

Every path of a flag, a config value or a Python call passes through `local`.
"""

import os
import re
import stat
from pathlib import Path

from smallbatch.errors import UserError

# gs://b/r, and gs:/b/r, which is what pathlib makes of it. HOST:/DIR of NFS and ssh has the same form.
REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# Keys of a config that hold a path, with the forms in front of it; "" is the whole value.
CONFIG_PATHS = {
    "data.source": ("text:", "tokens:"),
    "data.validation_source": ("text:", "tokens:"),
    "data.tokenizer": ("file:",),
    "data.cache_dir": ("",),
    "data.tfds_data_dir": ("",),
}


def local(path: str | os.PathLike[str], name: str = "") -> Path:
    """Return a path with `~` and `~user` expanded.

    name: the flag or key that holds it, such as "--workdir", for the error.

    Raises:
        UserError: it is a URL, names an unknown user, or is no valid path.
    """
    text = os.fspath(path)
    shown = f"{name}={text!r}" if name else f"the path {text!r}"
    if REMOTE.match(text):
        raise UserError(
            f"{shown} is an address, and smallbatch reads and writes local paths only. Mount the bucket "
            "(gcsfuse, s3fs, rclone mount) and give the path of the mount, or copy the files"
        )
    if "\0" in text:
        raise UserError(f"{shown} contains a null byte; remove it")
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise UserError(f"{shown}: no home directory is known for {text.partition('/')[0]}; write the full path")
    return Path(expanded)


def config_problems(flat: dict[str, object]) -> list[str]:
    """Return what is wrong with the paths in {dotted key: value} of a config, one problem an entry."""
    problems = []
    for key, forms in CONFIG_PATHS.items():
        value = flat.get(key)
        form = next((form for form in forms if isinstance(value, str) and value.startswith(form)), None)
        if form is None:
            continue
        try:
            local(str(value).removeprefix(form), f"{key}: {form}" if form else key)
        except UserError as error:
            problems.append(str(error))
    return problems


def status(path: Path) -> os.stat_result | None:
    """Return os.stat of a path, None where nothing is. Raises UserError where that cannot be found out.

    `Path.exists` and its kin raise OSError (Python 3.11) or return False (3.12) for a directory without search
    permission and for a name that is too long; the one is a traceback and the other is wrong.
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot access {path}: {reason}; check the path and its permissions") from error


def exists(path: Path) -> bool:
    """Return whether something is there. Raises UserError where that cannot be found out."""
    return status(path) is not None


def is_file(path: Path) -> bool:
    """Return whether a file is there. Raises UserError where that cannot be found out."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_dir(path: Path) -> bool:
    """Return whether a directory is there. Raises UserError where that cannot be found out."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def entries(directory: Path) -> list[Path]:
    """Return what a directory holds, [] where there is no directory. Raises UserError where it cannot be read."""
    try:
        return sorted(directory.iterdir()) if is_dir(directory) else []
    except OSError as error:
        raise UserError(f"cannot read {directory}: {error.strerror or error}; check its permissions") from error


def resolved(path: Path) -> Path:
    """Return the absolute path without links. Raises UserError where it cannot be followed."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, Python 3.11 and 3.12
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot access {path}: {reason}; check the path and its permissions") from error


def check_writable(directory: Path, fix: str) -> None:
    """Raise UserError, with `fix`, if a directory can neither be written in nor be made; write nothing."""
    nearest = directory
    while not exists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not is_dir(nearest):
        raise UserError(f"cannot write in {directory}: {nearest} is not a directory; {fix}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write in {directory}: no permission in {nearest}; {fix}")
