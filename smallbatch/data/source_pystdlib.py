"""`pystdlib`: the Python standard library of the running interpreter, as a TFDS dataset that needs no network."""

import contextlib
import io
import shutil
import sys
from collections.abc import Iterator

from smallbatch.data.corpus_files import Skipped
from smallbatch.data.source_tfds import texts
from smallbatch.errors import UserError
from smallbatch.files import paths
from smallbatch.files.locks import locked
from smallbatch.specs import DataSpec


def identity(spec: DataSpec) -> dict[str, object]:
    return {"source": "pystdlib", "python": "{}.{}.{}".format(*sys.version_info[:3])}


def documents(spec: DataSpec, skipped: Skipped) -> Iterator[str]:
    """Yield the modules of the standard library; the TFDS dataset is built at first use."""
    import tensorflow_datasets as tfds

    from smallbatch.data.pystdlib.pystdlib_dataset_builder import Builder

    data_dir = paths.local(spec.tfds_data_dir or f"{spec.cache_dir}/tfds", "data.tfds_data_dir")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with locked(data_dir / "pystdlib.lock"), contextlib.redirect_stdout(io.StringIO()):
            tfds.disable_progress_bar()
            for leftover in data_dir.glob("pystdlib/incomplete.*"):  # of a build that was killed
                shutil.rmtree(leftover)
            builder = Builder(data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
    except OSError as error:
        raise UserError(
            f"cannot build the TFDS dataset in {data_dir}: {error.strerror or error}; free space or set "
            "data.tfds_data_dir"
        ) from error
    yield from texts(builder, "train", "text")
