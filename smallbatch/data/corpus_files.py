"""Find and open the files of a corpus: globs, symbolic links, Git LFS pointers and compressed files."""

import contextlib
import fnmatch
import functools
import glob
import io
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from smallbatch.errors import UserError
from smallbatch.files import paths

LFS_POINTER_START = b"version https://git-lfs.github.com/spec/"
LFS_POINTER_MAX_BYTES = 1024  # from the Git LFS specification
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
DANGLING = "links without a target"
MAX_EXAMPLES = 3


@dataclass
class Skipped:
    """Counts of the skipped parts of a corpus (files, rows, lines) by kind, with the first few as examples."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, example: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        if self.counts[what] <= MAX_EXAMPLES:
            self.examples.setdefault(what, []).append(example)

    def lines(self) -> list[str]:
        """Return one line for each kind."""
        return [
            f"skipped {what}: {count:,} ({', '.join(self.examples[what])}{', ...' if count > MAX_EXAMPLES else ''})"
            for what, count in self.counts.items()
        ]


def matched_files(pattern: str, form: str, skipped: Skipped) -> list[Path]:
    """Return the files that a glob matches, sorted by path; dangling links are added to `skipped`.

    `**` crosses directories and links to directories. A file with several matching paths is returned once, by a path
    without links if there is one. As in a shell, names that start with a dot match only a pattern that does too.

    form: the start of the config value, such as "text:", for errors.

    Raises: UserError if no file matches, or a directory cannot be read.
    """
    pattern = str(paths.local(pattern, f"data.source: {form}"))
    root = "/" if pattern.startswith("/") else ""
    found = [pattern] if paths.is_file(Path(pattern)) else _expand(root, [part for part in pattern.split("/") if part])
    real_directory = functools.cache(os.path.realpath)

    def real_path(path: str) -> str:
        directory, name = os.path.split(path)
        return os.path.realpath(path) if os.path.islink(path) else os.path.join(real_directory(directory), name)

    by_real_path: dict[str, Path] = {}
    for _, path, real in sorted((real_path(path) != os.path.abspath(path), path, real_path(path)) for path in found):
        if os.path.isfile(path):
            by_real_path.setdefault(real, Path(path))
    for path in sorted(path for path in found if os.path.islink(path) and not os.path.exists(path)):
        skipped.add(DANGLING, path)
    if by_real_path:
        return sorted(by_real_path.values(), key=Path.as_posix)
    fix = f"check data.source={form}GLOB (`**` crosses directories)"
    if os.path.isdir(pattern):
        fix = f"it is a directory: write {form}{os.path.join(pattern, '**', '*.txt' if form == 'text:' else '*.bin')}"
    if skipped.counts:
        fix = f"{skipped.lines()[0]}; restore the targets"
    raise UserError(f"no file matches {pattern!r}; {fix}")


def identity(path: Path) -> list[object]:
    """Return the path, size and modification time of a file. A change in any of them gives a new dataset directory."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    return [str(paths.resolved(path)), status.st_size, status.st_mtime_ns]


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is the pointer that Git LFS checks out before `git lfs pull`."""
    if path.stat().st_size > LFS_POINTER_MAX_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER_START)) == LFS_POINTER_START


def refuse_lfs_pointer(path: Path) -> None:
    """Raise UserError if a file is a Git LFS pointer."""
    if is_lfs_pointer(path):
        raise UserError(f"{path} is a Git LFS pointer, not its content; run `git lfs pull` in its repository")


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressing .gz and .zst.

    Raises: UserError, also during reads, for an archive that is damaged or truncated.
    """
    if path.suffix not in COMPRESSION:
        with path.open("rb") as file:
            yield file
        return
    import pyarrow

    try:
        if path.stat().st_size == 0:
            raise OSError("it is empty")
        with pyarrow.input_stream(str(path), compression=COMPRESSION[path.suffix]) as stream:
            yield io.BufferedReader(stream)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        if error.errno is not None:
            raise  # an error of the disk, not of the content
        raise UserError(
            f"{path} is a damaged or truncated {path.suffix} archive ({error}); copy or compress it again"
        ) from error


def mapped(path: Path) -> mmap.mmap | bytes:
    """Return the content of a file as a memory map, because it may be larger than the memory.

    A compressed file is first decompressed into a temporary file.
    """
    with open_bytes(path) as file, contextlib.ExitStack() as stack:
        if path.suffix in COMPRESSION:
            temporary = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(file, temporary)
            temporary.flush()
            file = temporary
        size = os.fstat(file.fileno()).st_size
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""


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
    """Return the entries of a directory sorted by name; [] for a path that is not a directory."""
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
