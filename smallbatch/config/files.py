"""Load configs from Python files with a get_config(), and from the config.json of a run.

An error in a Python file is reported with its line. The file may import modules from its own folder. They are removed
from sys.modules afterwards, so files in different folders can have modules of the same name.
"""

import importlib
import inspect
import runpy
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import config_dict

from smallbatch import config as configs
from smallbatch.config import Config, flatten, key_types
from smallbatch.errors import UserError, did_you_mean
from smallbatch.files import json_files, paths


def load(path_and_argument: str) -> Config:
    """Return get_config() of FILE.py, get_config(ARGUMENT) of FILE.py:ARGUMENT, or the config in a run's config.json.

    Raises UserError.
    """
    path, colon, argument = split(path_and_argument)
    if path.endswith(".json"):
        if colon:
            raise UserError(f"--config={path_and_argument}: a .json file has no argument; remove ':{argument}'")
        return load_saved(Path(path))
    arguments = [argument] if colon else []
    with _neighbours_of(path):
        get_config = run_file(path).get("get_config")
        if not callable(get_config):
            raise UserError(f"config file {path} has no get_config(); define one that returns a config")
        try:
            inspect.signature(get_config).bind(*arguments)
        except TypeError:
            fix = f"takes no argument; remove ':{argument}'" if colon else "needs an argument; write FILE.py:ARGUMENT"
            raise UserError(f"get_config() of config file {path} {fix}") from None
        with _errors_of(path):
            loaded = get_config(*arguments)
    if not isinstance(loaded, config_dict.ConfigDict):
        kind = "nothing; is its return statement missing?" if loaded is None else f"a {type(loaded).__name__}"
        raise UserError(f"get_config() of config file {path} must give a ConfigDict, but gave {kind}")
    strange = sorted(set(flatten(loaded.to_dict())) ^ set(key_types()))
    if strange:
        names = ", ".join(strange[:3]) + (", ..." if strange[3:] else "")
        raise UserError(f"config file {path} must start from smallbatch.config.base(): its keys differ in {names}")
    return loaded


def split(path_and_argument: str) -> tuple[str, str, str]:
    """Return (path, ":" or "", argument) of --config, with `~` in the path expanded. Raises UserError."""
    paths.local(path_and_argument, "--config")  # first, since the colon of a URL would be parsed as that of an argument
    path, colon, argument = path_and_argument.partition(":")
    return str(paths.local(path, "--config")), colon, argument


def load_saved(path: Path) -> Config:
    """Return the config in a run's config.json, with defaults for missing keys. Raises UserError."""
    if not paths.is_file(path):
        raise UserError(f"there is no config file {str(path)!r}; check the path of --config")
    sections = json_files.read_config(path)
    try:
        return configs.from_sections(sections)
    except UserError as error:
        fix = "use the version of smallbatch that wrote it, or write a config file for this version"
        raise UserError(f"{path}: {error} (from another version, or not a config; {fix})") from error


def load_grid(path_and_argument: str) -> Any:
    """Return get_grid() of FILE.py, with the ARGUMENT of FILE.py:ARGUMENT where one is given, as a tuple of dicts.

    Raises UserError.
    """
    path, colon, argument = split(path_and_argument)
    if path.endswith(".json"):
        raise UserError(
            f"--config={path} is the config of one run, and a sweep needs a .py file with get_grid(); to resume a "
            "sweep, give --workdir alone"
        )
    with _neighbours_of(path):
        get_grid = run_file(path).get("get_grid")
        if not callable(get_grid):
            raise UserError(f"config file {path} has no get_grid(); define one, as in configs/quickstart_grid.py")
        with _errors_of(path):
            grid = get_grid(*[argument] if colon else [])
    is_cell = lambda cell: isinstance(cell, Mapping) and all(isinstance(key, str) for key in cell)
    if not isinstance(grid, tuple | list) or not all(map(is_cell, grid)):
        found = "nothing; is its return statement missing?" if grid is None else repr(grid)[:40]
        raise UserError(f"get_grid() of config file {path} must give cells, as product() does, but gave {found}")
    return tuple(grid)


def run_file(path: str) -> dict[str, Any]:
    """Run a config file and return its names. Raises UserError that says which line failed."""
    if not paths.is_file(Path(path)):
        folder = Path(path).parent
        siblings = [str(file) for file in folder.glob("*.py")] if paths.is_dir(folder) else []
        known = sorted(str(file) for file in Path("configs").glob("*.py"))
        meant = did_you_mean(path, siblings) or (f"; there are {', '.join(known)}" if known else "")
        raise UserError(f"there is no config file {path!r}{meant}")
    with _errors_of(path):
        return runpy.run_path(path)


@contextmanager
def _neighbours_of(path: str) -> Iterator[None]:
    """Make the modules in the folder of a file importable inside the context, and remove them afterwards."""
    folder = paths.resolved(Path(path).parent)
    before, entry = set(sys.modules), str(folder)
    importlib.invalidate_caches()
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with suppress(ValueError):  # if the file removed it
            sys.path.remove(entry)
        new = set(sys.modules) - before
        beside = {name for name in new if "." not in name and _lies_beside(sys.modules[name], folder)}
        for name in new:
            if name.partition(".")[0] in beside:
                del sys.modules[name]


def _lies_beside(module: ModuleType, folder: Path) -> bool:
    """Return whether a module is FOLDER/NAME.py or a package FOLDER/NAME, and not this package."""
    file = getattr(module, "__file__", None)
    roots = [*getattr(module, "__path__", ())] or [file] * (file is not None)
    return module.__name__ != "smallbatch" and any(Path(root).parent == folder for root in roots)


@contextmanager
def _errors_of(path: str) -> Iterator[None]:
    """Turn whatever a config file raises into one line that names the file, the line and the reason."""
    try:
        yield
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f"{path}:{lines[-1]}" if lines else path
        reason = str(error).partition("\n")[0]
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {kind}{reason}") from error
