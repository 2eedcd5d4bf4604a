"""Checkpoints of a run, written by orbax while training continues, and verified when they are restored.

Orbax writes each checkpoint to a temporary directory, renames it when it is complete, and then deletes superseded
ones. Its format does not detect changed bytes in an array, so each checkpoint also holds a checksum of every array,
computed on its devices, and a digest of the metadata.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smallbatch.errors import UserError
from smallbatch.training import distributed


class Checkpoints:
    """The checkpoints in a directory, each in a subdirectory named by its number of finished updates.

    The newest `keep` intact ones are kept. An older one is deleted only after a save has finished.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._checkpointer: Any = None  # opened by the first save: `restore` must not write
        self._pending: Any = None  # the save in progress
        self._restored: int | None = None
        self._damaged: set[int] = set()

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Start to save a pytree of arrays and a JSON value. Return when the arrays may be donated.

        Waits for the previous save. Does nothing for the step that was restored.

        Raises UserError if this checkpoint or the previous one cannot be written.
        """
        self.wait()
        if step == self._restored:
            return
        arrays = _by_path(state)
        checksums = _checksums(arrays)
        described = {name: [*_dtype_and_shape(x), checksums[name]] for name, x in arrays.items()}
        metadata = _with_digest({"progress": progress, "arrays": described})
        with self._explained():
            self._checkpointer = self._checkpointer or self._open()
            overwrite = step in self._damaged
            self._damaged.discard(step)
            self._pending = self._checkpointer.save_async(
                step, arrays, force=True, overwrite=overwrite, custom_metadata=metadata
            )

    def wait(self) -> None:
        """Wait until the save in progress, if any, is on disk. Raises UserError if it cannot be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._explained():
                pending.result()  # also ends orbax's thread

    def close(self) -> None:
        """Wait for the save in progress, and release orbax's resources."""
        self.wait()
        if self._checkpointer is not None:
            with self._explained():
                self._checkpointer.close()
            self._checkpointer = None

    def restore(self, abstract_state: Any, log: Callable[[str], None] = print) -> tuple[Any, dict[str, Any]] | None:
        """Return (state, progress) of the newest intact checkpoint, or None if there is no checkpoint. Only reads.

        A damaged checkpoint is skipped, with one line to `log`.

        Args:
            abstract_state: pytree of jax.ShapeDtypeStruct with shardings on any mesh. It may be a part of the saved
                state; only that part is read.

        Raises UserError if all checkpoints are damaged, or if the newest intact one has another model or optimizer.
        """
        problem = ""
        while steps := [step for step in distributed.broadcast_from_first(self._steps) if step not in self._damaged]:
            path = self._directory / str(steps[-1])
            if problem:
                log(f"{problem}; restoring {path} instead")
                problem = ""
            try:
                progress, state = _read(path, abstract_state)
            except UserError:
                raise
            except Exception as error:  # orbax and tensorstore raise exceptions of many types
                if distributed.broadcast_from_first(path.exists):  # a concurrent run may have deleted it
                    self._damaged.add(steps[-1])
                    problem = f"the checkpoint {path} is damaged ({_reason(error)})"
                continue
            self._restored = steps[-1]
            return state, progress
        if self._damaged:
            raise UserError(
                f"{problem or 'all checkpoints are damaged'}, and no older one is intact; restore it from a copy, or "
                f"delete {self._directory} to restart the run"
            )
        return None

    def _steps(self) -> list[int]:
        if not self._directory.is_dir():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdecimal() and path.is_dir())

    def _open(self) -> Any:
        ocp = _orbax()
        context = ocp.Context()
        # If orbax cannot create a directory in the background, it blocks the process for 5 minutes.
        context.asynchronous.create_directories_asynchronously = False
        return ocp.training.Checkpointer(
            self._directory,
            context=context,
            preservation_policy=_NewestIntact(self._keep, self._damaged),
            cleanup_tmp_directories=True,
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._checkpointer = None  # it would raise this error again; the next save opens a new one
            is_os_error = isinstance(error, OSError) or "os_error" in str(error)  # ValueError in tensorstore
            if not is_os_error:
                raise
            raise UserError(
                f"cannot write a checkpoint to {self._directory}: {_reason(error)}; free some space or choose another "
                "directory"
            ) from error


@dataclasses.dataclass
class _NewestIntact:
    """Preservation policy for orbax: keep the newest checkpoints that are not known to be damaged."""

    keep: int
    damaged: set[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        intact = [checkpoint.step for checkpoint in checkpoints if checkpoint.step not in self.damaged]
        return [checkpoint.step in intact[-self.keep :] for checkpoint in checkpoints]


def _orbax() -> Any:
    from orbax.checkpoint import v1 as ocp

    _ignore_abandoned_io()
    for logger in ("absl", "asyncio"):  # at every use, because other libraries set the level of absl's logger too
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # they log errors that orbax also raises
    return ocp


@functools.cache
def _ignore_abandoned_io() -> None:
    sys.unraisablehook = functools.partial(_without_abandoned_io, sys.unraisablehook)


def _without_abandoned_io(hook: Callable, unraisable: Any) -> None:
    """Pass an unraisable exception to `hook`, unless tensorstore raised it in a read or write that orbax abandoned."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def _read(path: Path, abstract_state: Any) -> tuple[dict[str, Any], Any]:
    """Return (progress, state). Raises UserError for another model, and any other exception for a damaged file."""
    wanted = _by_path(abstract_state)

    def read_own_part() -> tuple[dict[str, Any], dict[str, jax.Array]]:
        metadata = _verified(_orbax().metadata(str(path)).custom_metadata)
        for name, abstract in wanted.items():
            saved, ours = metadata["arrays"].get(name, ["nothing", []])[:2], _dtype_and_shape(abstract)
            if saved != ours:  # orbax would convert the array
                raise UserError(
                    f"the checkpoint {path} belongs to another model or optimizer: {name} is {_shown(*saved)}, not "
                    f"{_shown(*ours)}; use the config it was trained with, or another directory"
                )
        return metadata, _load(path, wanted)

    with _quiet():
        metadata, arrays = distributed.raise_in_all(read_own_part)
    for name, checksum in _checksums(arrays).items():
        if checksum != metadata["arrays"][name][2]:
            raise ValueError(f"the checksum of {name} is wrong")
    return metadata["progress"], jax.tree.unflatten(
        jax.tree.structure(abstract_state), [arrays[name] for name in wanted]
    )


def _load(path: Path, wanted: dict[str, Any]) -> dict[str, jax.Array]:
    ocp = _orbax()
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    # Each process reads independently. Otherwise a process with a damaged part would block the others.
    process = jax.process_index()
    context.multiprocessing.primary_host, context.multiprocessing.active_processes = process, {process}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{process}"
    with context:
        return ocp.load(str(path), wanted)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings of orbax about problems that it also raises."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _by_path(tree: Any) -> dict[str, Any]:
    """Return {path: leaf} in the order of the leaves."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _dtype_and_shape(array) -> list:
    return [np.dtype(array.dtype).name, list(array.shape)]


def _shown(dtype: str, shape: list[int]) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"


def _checksums(arrays: dict[str, jax.Array]) -> dict[str, int]:
    # One at a time: many small programs with collectives in flight can deadlock on a CPU whose cores are all busy.
    return {name: int(_checksum(x)) for name, x in arrays.items()}


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """Return a uint32 that changes if one element changes or two are exchanged."""
    # Bits times an odd weight by position, summed modulo 2^32: independent of the order of addition and of the mesh.
    bits = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]).astype(jnp.uint32)
    weight = jnp.ones(x.shape, jnp.uint32)
    stride = 2
    for axis in reversed(range(x.ndim)):
        weight += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(bits * weight, dtype=jnp.uint32)


def _with_digest(value: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(value)
    return {"about": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _verified(metadata: dict[str, Any] | None) -> dict[str, Any]:
    text = (metadata or {}).get("about")
    if text is None or metadata is None or metadata.get("sha256") != hashlib.sha256(text.encode()).hexdigest():
        raise ValueError("its metadata is missing or changed")
    return json.loads(text)
