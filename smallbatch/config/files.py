"""Load configs from Python files with a get_config(), and from the config.json of a run."""

import importlib
import inspect
import runpy
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallbatch.config import config_dict
from smallbatch.config.keys import KEY_BY_NAME
from smallbatch.errors import UserError, did_you_mean
from smallbatch.files import json_files, paths


def load(path_and_argument: str) -> config_dict.Config:
    """Return get_config() of FILE.py, get_config(ARGUMENT) of FILE.py:ARGUMENT, or the config in a run's config.json.

    Raises UserError.
    """
    path, arguments = split(path_and_argument)
    if path.endswith(".json"):
        if arguments:
            raise UserError(f"--config={path_and_argument}: a .json file has no argument; remove ':{arguments[0]}'")
        return load_saved(Path(path))
    loaded = _call(path, "get_config", arguments)
    if not isinstance(loaded, ConfigDict):
        raise UserError(f"get_config() of {path} must return a ConfigDict, but returned {_shown(loaded)}")
    unknown = sorted(set(config_dict.flatten(loaded.to_dict())) ^ set(KEY_BY_NAME))
    if unknown:
        names = ", ".join(unknown[:3]) + (", ..." if unknown[3:] else "")
        raise UserError(f"config file {path} must start from smallbatch.config.base(): its keys differ in {names}")
    return loaded


def load_saved(path: Path) -> config_dict.Config:
    """Return the config in a run's config.json, with defaults for missing keys. Raises UserError."""
    if not paths.is_file(path):
        raise UserError(f"there is no config file {str(path)!r}; check the path of --config")
    sections = json_files.read_config(path)
    try:
        return config_dict.from_sections(sections)
    except UserError as error:
        raise UserError(
            f"{path} is not a config, or is from another version: {error}; use the version of smallbatch that wrote "
            "it, or write a config file for this version"
        ) from error


def load_grid(path_and_argument: str) -> tuple[dict[str, Any], ...]:
    """Return get_grid() of FILE.py, or get_grid(ARGUMENT) of FILE.py:ARGUMENT. Raises UserError."""
    path, arguments = split(path_and_argument)
    if path.endswith(".json"):
        raise UserError(
            f"--config={path} is the config of one run, but a sweep needs a .py file with get_grid(); to resume a "
            "sweep, give --workdir alone"
        )
    grid = _call(path, "get_grid", arguments)
    cells = grid if isinstance(grid, tuple | list) else [None]
    if not all(isinstance(cell, dict) and all(isinstance(key, str) for key in cell) for cell in cells):
        raise UserError(f"get_grid() of {path} must return cells, as product() does, but returned {_shown(grid)}")
    return tuple(grid)


def split(path_and_argument: str) -> tuple[str, list[str]]:
    """Return the path of --config, with `~` expanded, and [ARGUMENT] or []. Raises UserError."""
    paths.local(path_and_argument, "--config")  # first: the colon of a URL would start an argument
    path, *arguments = path_and_argument.split(":", 1)
    return str(paths.local(path, "--config")), arguments


def _call(path: str, name: str, arguments: list[str]) -> Any:
    """Run a config file and return NAME(*arguments). Raises UserError that names the file and the line."""
    if not paths.is_file(Path(path)):
        folder = Path(path).parent
        siblings = [str(file) for file in folder.glob("*.py")] if paths.is_dir(folder) else []
        known = sorted(str(file) for file in Path("configs").glob("*.py"))
        near = did_you_mean(path, siblings) or (f"; there are {', '.join(known)}" if known else "")
        raise UserError(f"there is no config file {path!r}{near}")
    with _importable_folder(paths.resolved(Path(path).parent)):
        with _errors_of(path):
            function = runpy.run_path(path).get(name)
        if not callable(function):
            raise UserError(f"config file {path} has no {name}(); define it, as in configs/quickstart_grid.py")
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError:
            fix = f"has no argument; remove ':{arguments[0]}'" if arguments else "needs one; write FILE.py:ARGUMENT"
            raise UserError(f"{name}() of config file {path} {fix}") from None
        with _errors_of(path):
            return function(*arguments)


def _shown(value: Any) -> str:
    return "None; is its return statement missing?" if value is None else f"{value!r:.40}"


@contextmanager
def _importable_folder(folder: Path) -> Iterator[None]:
    """Make the modules in a folder importable, then unload them, since another folder may have the same names."""
    before = set(sys.modules)
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None) or ""
            inside = Path(file).parent.parent if file.endswith("__init__.py") else Path(file).parent
            if file and inside == folder and not name.startswith("smallbatch"):
                sys.modules.pop(name)


@contextmanager
def _errors_of(path: str) -> Iterator[None]:
    """Convert any exception in a config file to a one-line UserError with the file, the line and the reason."""
    try:
        yield
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f"{path}:{lines[-1]}" if lines else path
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {kind}{str(error).partition(chr(10))[0]}") from error
