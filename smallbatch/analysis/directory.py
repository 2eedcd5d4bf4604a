"""The directory of a report: which one a report may be written to, and which of its files are the report's own.

A report writes and removes only files that it or the report before it wrote. report_files.json lists them. The list is
checked like any other input: it cannot make a report touch a file of another kind or outside its directory.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from smallbatch import paths
from smallbatch.analysis.study import TITLES
from smallbatch.errors import UserError
from smallbatch.records import read_json, write_bytes, write_json

LIST = "report_files.json"
LIST_FORMAT = 1
_OURS = re.compile(r"index\.html|summary\.json|[a-z_]+\.csv|figures/[^/\\\0]+\.svg")


class ReportDirectory:
    """A directory that may hold a report of ours and nothing else, or does not exist yet."""

    def __init__(self, path: Path, inputs: Sequence[Path] = ()) -> None:
        """Check the directory. Raises UserError where a report in it could harm the inputs or files of a person."""
        self.path = path
        try:
            self._refuse_inputs(inputs)
            self._listed = self._files_of_last_report()
        except (OSError, RuntimeError) as error:  # the latter for links that form a loop
            raise UserError(f"cannot read {path}: {error}; choose another directory with --out=DIR") from error

    def write(self, files: dict[str, bytes]) -> None:
        """Write files by their relative names, and remove those of the last report that are not among them."""
        for name in files:
            if name not in self._listed and os.path.lexists(self.path / name):
                raise UserError(
                    f"{self.path / name} is in the way: no report wrote it; move it, or choose another directory with "
                    "--out=DIR"
                )
        try:
            (self.path / "figures").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; choose another directory with --out=DIR"
            ) from error
        # First the files of both reports: a report that is interrupted leaves no file that the next one does not know.
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
            # A link is replaced by the file it points to in one reading, and stays what was named in the other.
            for found in (paths.resolved(given), paths.resolved(given.parent) / given.name):
                if found.is_relative_to(resolved):
                    raise UserError(
                        f"--out={self.path} holds the input {given}, which a report would overwrite; choose another "
                        "directory with --out=DIR"
                    )

    def _files_of_last_report(self) -> frozenset[str]:
        """Return the names of the files that the last report wrote here."""
        path, figures = self.path, self.path / "figures"
        if not paths.exists(path):
            return frozenset()
        if not paths.is_dir(path):
            raise UserError(f"--out={path} is a file; choose a directory with --out=DIR")
        if paths.exists(path / LIST):
            names = _names(read_json(path / LIST), path / LIST)
        elif _is_summary(path / "summary.json"):
            names = _files_of_old_report(path)
        elif any(path.iterdir()):
            raise UserError(
                f"{path} is not empty and holds no report, so its files could be overwritten; choose another directory "
                "with --out=DIR"
            )
        else:
            return frozenset()
        if figures.is_symlink() or (figures.exists() and not figures.is_dir()):
            raise UserError(
                f"{figures} is not a directory of the report; remove it, or choose another directory with --out=DIR"
            )
        return names


def _names(value: Any, path: Path) -> frozenset[str]:
    names = value.get("files") if isinstance(value, dict) and value.get("format") == LIST_FORMAT else None
    if not isinstance(names, list) or not all(isinstance(name, str) and _OURS.fullmatch(name) for name in names):
        raise UserError(
            f"{path} is not the list of a report's files; remove the report's directory, or choose another directory "
            "with --out=DIR"
        )
    return frozenset(names)


def _is_summary(path: Path) -> bool:
    """Return whether a file is the summary of a report from before reports listed their files."""
    try:
        value = read_json(path)
    except UserError:
        return False
    return isinstance(value, dict) and {"format", "smallbatch", "answers", "warnings"} <= value.keys()


def _files_of_old_report(path: Path) -> frozenset[str]:
    """Return the files of a report without a list: its tables, and the figures that its page shows."""
    names = {"index.html", "summary.json"}
    names |= {f"{sheet}.csv" for sheet in TITLES if (path / f"{sheet}.csv").exists()}
    try:
        page = (path / "index.html").read_text(errors="replace")
    except FileNotFoundError:
        page = ""
    figures = (f"figures/{name}.svg" for name in re.findall(r'<figure id="figure-([^"]+)">', page))
    return frozenset(names | {name for name in figures if _OURS.fullmatch(name)})
