"""Check the output directory of a report, and replace the files of the previous report in it.

Only files that this report or the previous one wrote are overwritten or removed. report_files.json lists them. The list
is validated like any other input, so it cannot name other kinds of files, or files outside the directory.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from smallbatch.analysis.report.study import TITLES
from smallbatch.errors import UserError
from smallbatch.files import json_files, paths
from smallbatch.runs.records import write_bytes, write_json

LIST = "report_files.json"
LIST_FORMAT = 1
_OURS = re.compile(r"index\.html|summary\.json|[a-z_]+\.csv|figures/[^/\\\0]+\.svg")


class ReportDirectory:
    """A directory that is missing, is empty, or holds only a report."""

    def __init__(self, path: Path, inputs: Sequence[Path] = ()) -> None:
        """Check the directory. Raises UserError if a report there could overwrite its inputs or a user's files."""
        self.path = path
        try:
            self._refuse_inputs(inputs)
            self._listed = self._files_of_last_report()
        except (OSError, RuntimeError) as error:  # RuntimeError: links that form a loop
            raise UserError(f"cannot read {path}: {error}; choose another directory with --out=DIR") from error

    def write(self, files: dict[str, bytes]) -> None:
        """Write files by their relative names, and remove files of the last report that are no longer needed."""
        for name in files:
            if name not in self._listed and os.path.lexists(self.path / name):
                raise UserError(
                    f"{self.path / name} is not a file of a report, and only those are overwritten. Move it, or choose "
                    "another directory with --out=DIR"
                )
        try:
            (self.path / "figures").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; choose another directory with --out=DIR"
            ) from error
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
                        f"--out={self.path} contains the input {given}, which the report could overwrite; choose "
                        "another directory with --out=DIR"
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
        elif _is_summary(path / "summary.json"):
            names = _files_of_old_report(path)
        elif any(path.iterdir()):
            raise UserError(
                f"{path} is not empty and holds no report. A report needs a new or empty directory, or that of an "
                "earlier report; choose another directory with --out=DIR"
            )
        else:
            return frozenset()
        if figures.is_symlink() or (figures.exists() and not figures.is_dir()):
            raise UserError(
                f"{figures} must be a directory, not a file or a link; remove it, or choose another directory with "
                "--out=DIR"
            )
        return names


def _names(value: Any, path: Path) -> frozenset[str]:
    names = value.get("files") if isinstance(value, dict) and value.get("format") == LIST_FORMAT else None
    if not isinstance(names, list) or not all(isinstance(name, str) and _OURS.fullmatch(name) for name in names):
        raise UserError(
            f"{path} is damaged: it must list the files of a report. Remove the directory of the report, or choose "
            "another directory with --out=DIR"
        )
    return frozenset(names)


def _is_summary(path: Path) -> bool:
    """Return whether a file is the summary of an older report, written before report_files.json existed."""
    try:
        value = json_files.read(path)
    except UserError:
        return False
    return isinstance(value, dict) and {"format", "smallbatch", "answers", "warnings"} <= value.keys()


def _files_of_old_report(path: Path) -> frozenset[str]:
    """Return the files of a report that has no report_files.json: its tables, and the figures on its page."""
    names = {"index.html", "summary.json"}
    names |= {f"{sheet}.csv" for sheet in TITLES if (path / f"{sheet}.csv").exists()}
    try:
        page = (path / "index.html").read_text(errors="replace")
    except FileNotFoundError:
        page = ""
    figures = (f"figures/{name}.svg" for name in re.findall(r'<figure id="figure-([^"]+)">', page))
    return frozenset(names | {name for name in figures if _OURS.fullmatch(name)})
