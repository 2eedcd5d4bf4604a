"""`tfds:NAME`: TensorFlow Datasets without TensorFlow, from array_record files in their stored order."""

import contextlib
import sys
from collections.abc import Iterator

from smallbatch.data.corpus_files import Skipped
from smallbatch.errors import UserError
from smallbatch.files import paths
from smallbatch.specs import DataSpec

EXAMPLES_AT_ONCE = 256


def identity(spec: DataSpec) -> dict[str, object]:
    return {name: getattr(spec, name) for name in ("source", "split", "text_key", "tfds_data_dir")}


def documents(spec: DataSpec, skipped: Skipped) -> Iterator[str]:
    """Yield the texts of one split of a TFDS dataset, which is downloaded and prepared if necessary.

    Raises: UserError for an unknown or unreachable dataset, a wrong file format, split or key.
    """
    source, split, text_key = spec.source, spec.split, spec.text_key
    data_dir = None if spec.tfds_data_dir is None else str(paths.local(spec.tfds_data_dir, "data.tfds_data_dir"))
    builder = _prepared_builder(source.removeprefix("tfds:"), data_dir)
    stored = [file_format.value for file_format in builder.info.available_file_formats()]
    if "array_record" not in stored:
        raise UserError(
            f"{source} in {builder.data_dir} is stored as {' and '.join(stored)}, which needs TensorFlow; "
            "store it as array_record (`tfds build --file_format=array_record`) in another data.tfds_data_dir"
        )
    try:
        builder.info.splits[split]
    except (KeyError, ValueError) as error:
        splits = ", ".join(builder.info.splits)
        raise UserError(f"{source} has no split {split!r}; set data.split to one of: {splits}") from error
    keys = [str(key) for key in builder.info.features or ()]  # pyright: ignore[reportGeneralTypeIssues]
    if text_key not in keys:
        raise UserError(f"{source} has no key {text_key!r}; set data.text_key to one of: {', '.join(keys)}")
    examples = builder.as_data_source(split=split, file_format="array_record")  # pyright: ignore[reportCallIssue]
    for start in range(0, len(examples), EXAMPLES_AT_ONCE):
        numbers = range(start, min(start + EXAMPLES_AT_ONCE, len(examples)))
        for number, example in zip(numbers, examples.__getitems__(list(numbers)), strict=True):
            where = f"{builder.info.full_name}: example {number} of {split}"
            if not isinstance(example[text_key], bytes):
                raise UserError(f"{where}: {text_key!r} is not text; set data.text_key to a text feature")
            try:
                yield example[text_key].decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{where} is not UTF-8 at byte {error.start}; correct the dataset") from error


def _prepared_builder(name: str, data_dir: str | None):
    import tensorflow_datasets as tfds

    try:
        with contextlib.redirect_stdout(sys.stderr):
            builder = tfds.builder(name, data_dir=data_dir)
            if not builder.is_prepared():
                builder.download_and_prepare(file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"TFDS has no dataset {name!r}; choose one from tensorflow.org/datasets/catalog, or set data.tfds_data_dir "
            "to a directory of prepared datasets"
        ) from error
    # A builder is third-party code and may raise anything: no network, no TensorFlow, a full disk.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"tfds:{name} is not prepared and cannot be prepared here ({type(error).__name__}: {reason}); "
            "prepare it on a machine with network as array_record and set data.tfds_data_dir"
        ) from error
    return builder
