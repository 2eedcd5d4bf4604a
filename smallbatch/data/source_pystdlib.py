"""`pystdlib`: the source files of the running Python's standard library, sorted by path."""

import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from smallbatch.data.corpus_files import Skipped
from smallbatch.errors import UserError
from smallbatch.specs import DataSpec

# Installed packages are not part of the library, and distributions differ in whether they include its tests.
SKIPPED_DIRECTORIES = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def identity(spec: DataSpec) -> dict[str, object]:
    return {"source": "pystdlib", "python": "{}.{}.{}".format(*sys.version_info[:3])}


def documents(spec: DataSpec, skipped: Skipped) -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py"), key=Path.as_posix):
        if SKIPPED_DIRECTORIES.intersection(path.relative_to(library).parts[:-1]):
            continue
        try:
            with tokenize.open(path) as file:  # decodes like the interpreter
                yield file.read()
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} is not readable as Python source ({error}); reinstall Python or use another corpus"
            ) from error
