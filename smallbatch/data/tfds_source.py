"""Documents from TensorFlow Datasets without TensorFlow: array_record files, read in their stored order."""

import contextlib
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from smallbatch.errors import UserError
from smallbatch.files.locks import locked

EXAMPLES_AT_ONCE = 256


def pystdlib_documents(data_dir: Path) -> Iterator[str]:
    """Yield the modules of the running Python's standard library; the TFDS dataset is built at first use."""
    import tensorflow_datasets as tfds

    from smallbatch.data.pystdlib.pystdlib_dataset_builder import Builder

    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with locked(data_dir / "pystdlib.lock"), contextlib.redirect_stdout(io.StringIO()):
            tfds.disable_progress_bar()
            for leftover in data_dir.glob("pystdlib/incomplete.*"):  # of a build that was killed
                shutil.rmtree(leftover)
            builder = Builder(data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
    except OSError as error:
        raise UserError(f"cannot build the TFDS dataset in {data_dir}: {error.strerror or error}") from error
    yield from _texts(builder, "train", "text")


def documents(name: str, split: str, text_key: str, data_dir: str | None) -> Iterator[str]:
    """Yield the texts of one split of a TFDS dataset, downloading and preparing it where it is not there yet.

    Raises: UserError for an unknown or unreachable dataset, a wrong file format, split or key.
    """
    builder = _prepared_builder(name, data_dir)
    stored = [file_format.value for file_format in builder.info.available_file_formats()]
    if "array_record" not in stored:
        raise UserError(
            f"tfds:{name} in {builder.data_dir} is stored as {' and '.join(stored)}, which needs TensorFlow; "
            "store it as array_record (`tfds build --file_format=array_record`) in another data.tfds_data_dir"
        )
    try:
        builder.info.splits[split]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"tfds:{name} has no split {split!r}; set data.split to one of: {', '.join(builder.info.splits)}"
        ) from error
    keys = [str(key) for key in builder.info.features or ()]  # pyright: ignore[reportGeneralTypeIssues]
    if text_key not in keys:
        raise UserError(f"tfds:{name} has no key {text_key!r}; set data.text_key to one of: {', '.join(keys)}")
    yield from _texts(builder, split, text_key)


def _prepared_builder(name: str, data_dir: str | None):
    import tensorflow_datasets as tfds

    try:
        with contextlib.redirect_stdout(sys.stderr):
            builder = tfds.builder(name, data_dir=data_dir)
            if not builder.is_prepared():
                builder.download_and_prepare(file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"TFDS knows no dataset {name!r}; names are listed at tensorflow.org/datasets/catalog, "
            "and data.tfds_data_dir names a directory with prepared ones"
        ) from error
    # A builder is other people's code and may raise anything: no network, no TensorFlow, a full disk.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"tfds:{name} is not prepared and cannot be prepared here ({type(error).__name__}: {reason}); "
            "prepare it on a machine with network as array_record and set data.tfds_data_dir"
        ) from error
    return builder


def _texts(builder, split: str, text_key: str) -> Iterator[str]:
    examples = builder.as_data_source(split=split, file_format="array_record")
    for start in range(0, len(examples), EXAMPLES_AT_ONCE):
        stop = min(start + EXAMPLES_AT_ONCE, len(examples))
        for number, example in enumerate(examples.__getitems__(list(range(start, stop))), start=start):
            text = example[text_key]
            place = f"{builder.info.full_name}: example {number} of {split}"
            if not isinstance(text, bytes):
                raise UserError(f"{place}: {text_key!r} is not text; set data.text_key to a text feature")
            try:
                yield text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{place} is not UTF-8 at byte {error.start}; mend the dataset") from error
