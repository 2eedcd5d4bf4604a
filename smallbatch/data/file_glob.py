"""Find the files that match a glob, each once, and detect dangling links and Git LFS pointers."""

import fnmatch
import functools
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smallbatch.errors import UserError

LFS_POINTER_START = b"version https://git-lfs.github.com/spec/"
LFS_POINTER_MAX_BYTES = 1024  # from the Git LFS specification


@dataclass(frozen=True)
class Matches:
    """The matches of a glob, each list sorted by path."""

    files: list[Path]
    dangling_links: list[Path]  # symbolic links whose target does not exist


def match(pattern: str) -> Matches:
    """Return the files that a glob matches (`**` crosses directories and links to directories).

    A file with several matching paths is returned once, by a path without links if there is one. As in a shell, names
    that start with a dot match only a pattern that starts with a dot.

    Raises: UserError for a directory that cannot be read.
    """
    root = "/" if pattern.startswith("/") else ""
    found = [pattern] if os.path.isfile(pattern) else _expand(root, [part for part in pattern.split("/") if part])
    real_directory = functools.cache(os.path.realpath)
    by_real_path: dict[str, Path] = {}
    dangling_links = []

    def real_path(path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        directory, name = os.path.split(path)
        return os.path.join(real_directory(directory), name)

    for _, path, real in sorted((real_path(path) != os.path.abspath(path), path, real_path(path)) for path in found):
        if os.path.isfile(path):
            by_real_path.setdefault(real, Path(path))
        elif os.path.islink(path) and not os.path.exists(path):
            dangling_links.append(Path(path))
    return Matches(sorted(by_real_path.values(), key=Path.as_posix), sorted(dangling_links, key=Path.as_posix))


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is the pointer that Git LFS checks out before `git lfs pull`."""
    if path.stat().st_size > LFS_POINTER_MAX_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER_START)) == LFS_POINTER_START


def _expand(directory: str, parts: list[str]) -> set[str]:
    """Return every path below a directory that matches the parts of a pattern."""
    if not parts:
        return {directory}
    part, rest = parts[0], parts[1:]
    if part == "**":
        return {path for inner in _directories(directory) for path in _expand(inner, rest or ["*"])}
    if not glob.has_magic(part):
        path = os.path.join(directory, part)
        return _expand(path, rest) if os.path.lexists(path) else set()
    names = [entry.name for entry in _entries(directory) if part.startswith(".") or not entry.name.startswith(".")]
    return {path for name in fnmatch.filter(names, part) for path in _expand(os.path.join(directory, name), rest)}


def _directories(top: str) -> Iterator[str]:
    """Yield a directory and all directories below it, each once, so that loops of links terminate."""
    seen: set[str] = set()
    directories, links = [top], []
    while directories or links:
        # Links come last, so that a directory below `top` is yielded with its own path.
        directory = directories.pop() if directories else links.pop(0)
        real = os.path.realpath(directory)
        if real in seen:
            continue
        seen.add(real)
        yield directory
        for entry in _entries(directory):
            path = os.path.join(directory, entry.name)
            if not entry.name.startswith(".") and os.path.isdir(path):
                (links if entry.is_symlink() else directories).append(path)


def _entries(directory: str) -> list[os.DirEntry]:
    """Return the entries of a directory sorted by name; none for a path that is not a directory."""
    try:
        with os.scandir(directory or ".") as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (NotADirectoryError, FileNotFoundError):
        return []
    except OSError as error:
        raise UserError(
            f"cannot read the directory {directory or '.'}: {error.strerror or error}; give it read permission, or "
            "narrow the glob of data.source"
        ) from error
