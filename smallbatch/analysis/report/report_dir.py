"""Check the output directory of a report, and replace the files of the previous report in it.

Only files that this report or the previous one wrote are overwritten or removed. report_files.json lists them. The list
is validated like any other input, so it cannot name other kinds of files, or files outside the directory.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from smallbatch.errors import UserError
from smallbatch.files import json_files, paths
from smallbatch.runs.records import write_bytes, write_json

LIST = "report_files.json"
LIST_FORMAT = 1
ELSEWHERE = "choose another directory with --out=DIR"
_OURS = re.compile(r"index\.html|summary\.json|[a-z_]+\.csv|figures/[^/\\\0]+\.svg")


class ReportDirectory:
    """A directory for a report; it must be missing or empty, or have the report_files.json of an earlier report."""

    def __init__(self, path: Path, inputs: Sequence[Path] = ()) -> None:
        """Check the directory. Raises UserError if a report there could overwrite its inputs or a user's files."""
        self.path = path
        try:
            self._refuse_inputs(inputs)
            self._listed = self._files_of_last_report()
        except (OSError, RuntimeError) as error:  # RuntimeError: links that form a loop
            raise UserError(f"cannot read {path}: {error}; {ELSEWHERE}") from error

    def write(self, files: dict[str, bytes]) -> None:
        """Write files by their relative names, and remove files of the last report that are no longer needed."""
        for name in files:
            if name not in self._listed and os.path.lexists(self.path / name):
                raise UserError(f"{self.path / name} was not written by a report; move it, or {ELSEWHERE}")
        try:
            (self.path / "figures").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; {ELSEWHERE}") from error
        # List the files of both reports first, so that every file of an interrupted report is in the list.
        self._write_list({*self._listed, *files})
        for name, content in files.items():
            write_bytes(self.path / name, content)
        for name in self._listed - files.keys():
            (self.path / name).unlink(missing_ok=True)
        self._write_list(files)
        self._listed = frozenset(files)

    def _write_list(self, names: Iterable[str]) -> None:
        write_json(self.path / LIST, {"format": LIST_FORMAT, "files": sorted(names)})

    def _refuse_inputs(self, inputs: Sequence[Path]) -> None:
        resolved = paths.resolved(self.path)
        for given in inputs:
            # Check the target of a link, and the link itself.
            for found in (paths.resolved(given), paths.resolved(given.parent) / given.name):
                if found.is_relative_to(resolved):
                    raise UserError(
                        f"--out={self.path} contains the input {given}, which could be overwritten; {ELSEWHERE}"
                    )

    def _files_of_last_report(self) -> frozenset[str]:
        """Return the names of the files that the last report wrote here."""
        path, figures = self.path, self.path / "figures"
        if not paths.exists(path):
            return frozenset()
        if not paths.is_dir(path):
            raise UserError(f"--out={path} is a file; choose a directory with --out=DIR")
        if paths.exists(path / LIST):
            names = _names(json_files.read(path / LIST), path / LIST)
        elif any(path.iterdir()):
            raise UserError(f"{path} is not empty and has no {LIST} of an earlier report; {ELSEWHERE}")
        else:
            return frozenset()
        if figures.is_symlink() or (figures.exists() and not figures.is_dir()):
            raise UserError(f"{figures} must be a directory, not a file or a link; remove it, or {ELSEWHERE}")
        return names


def _names(value: Any, path: Path) -> frozenset[str]:
    names = value.get("files") if isinstance(value, dict) and value.get("format") == LIST_FORMAT else None
    if not isinstance(names, list) or not all(isinstance(name, str) and _OURS.fullmatch(name) for name in names):
        raise UserError(
            f"{path} is damaged: it must list the files of a report. Remove the directory of the report, or {ELSEWHERE}"
        )
    return frozenset(names)
