"""The TFDS builder of `pystdlib`: one example a `.py` file, sorted by path.

The dataset's version is the interpreter's (3.11.7, 3.12.1): other interpreters ship another library, so their
builds lie side by side and are never mistaken for each other.
"""

import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from smallbatch.errors import UserError

# Installed packages are not the library, and distributions differ in whether they ship its tests.
SKIPPED_DIRECTORIES = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def library_files(library: Path) -> Iterator[Path]:
    """Yield the paths, relative to the library, of its modules in sorted order."""
    files = [path.relative_to(library) for path in library.rglob("*.py")]
    kept = [path for path in files if not SKIPPED_DIRECTORIES.intersection(path.parts[:-1])]
    yield from sorted(kept, key=lambda path: path.as_posix())


def read_source(path: Path) -> str:
    """Return the text of a Python file, decoded as the interpreter would decode it."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not readable as Python source ({error}); reinstall Python or use another corpus"
        ) from error


class Builder(tfds.core.GeneratorBasedBuilder):
    """Source code of Python's standard library, read from the running interpreter."""

    VERSION = tfds.core.Version("{}.{}.{}".format(*sys.version_info[:3]))

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"path": tfds.features.Text(), "text": tfds.features.Text()}),
            disable_shuffling=True,  # keeps the files in order
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(Path(sysconfig.get_paths()["stdlib"]))}

    def _generate_examples(self, library: Path):
        number = 0
        for path in library_files(library):
            if text := read_source(library / path):
                yield number, {"path": path.as_posix(), "text": text}
                number += 1
