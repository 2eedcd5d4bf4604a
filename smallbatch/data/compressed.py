"""Open plain, .gz and .zst files for reading as bytes."""

import contextlib
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from smallbatch.errors import UserError

ENDINGS = (".gz", ".zst")


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressing .gz and .zst.

    Raises: UserError, also during reads, for an archive that is damaged or truncated.
    """
    if path.suffix not in ENDINGS:
        with path.open("rb") as file:
            yield file
        return
    try:
        if path.stat().st_size == 0:
            raise EOFError("it is empty")
        with gzip.open(path, "rb") if path.suffix == ".gz" else _open_zst(path) as file:
            yield file  # pyright: ignore[reportReturnType]
    except (EOFError, zlib.error, OSError, *_zstd_errors()) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk, not of the content
        raise UserError(
            f"{path} is a damaged or truncated {path.suffix} archive ({error}); copy or compress it again"
        ) from error


def _open_zst(path: Path) -> BinaryIO:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.open(path, "rb")
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(
            f"{path} needs Python 3.14 or pyarrow; pip install 'smallbatch[parquet]', or decompress it with `zstd -d`"
        ) from error
    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


def _zstd_errors() -> tuple[type[Exception], ...]:
    if sys.version_info < (3, 14):
        return ()  # pyarrow raises OSError
    from compression import zstd

    return (zstd.ZstdError,)
