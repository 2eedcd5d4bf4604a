"""Checkpoints of a run: saved beside the training, restored exactly, and never trusted without a check.

Orbax writes each one to a temporary directory and renames it when it is whole, so a killed save leaves none.
Its format does not notice changed bytes in an array, so each checkpoint also has a checksum of every array,
computed where the array lives, and a digest of the rest. One that fails a check is damaged, and the one
before it is used.
"""

import functools
import hashlib
import json
import logging
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smallbatch.errors import UserError
from smallbatch.training import distributed

LEFTOVER = re.compile(r"\d+\..*")  # of a save or a deletion that was killed


MAX_VANISHED = 100


class Checkpoints:
    """The checkpoints in a directory: one directory each, named by the number of finished updates.

    The newest `keep` are kept. Older ones are deleted only after a save has finished, so a failed save deletes none.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._pending: Future[None] | None = None  # done after a save and the deletion of older checkpoints
        self._background = ThreadPoolExecutor(1, "checkpoints")
        self._restored: int | None = None
        self._damaged: set[int] = set()

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Start to save a pytree of arrays, and JSON with it; return when the arrays may be donated.

        The save before is waited for. The step that was restored is not saved again.

        Raises:
            UserError: this save, or the one before, cannot be written.
        """
        self.wait()
        if step == self._restored:
            return
        arrays = _named(state)
        sums = _checksums(arrays)
        described = {name: [*_kind(x), sums[name]] for name, x in arrays.items()}
        about = _sealed({"progress": progress, "arrays": described})
        try:
            self._remove_leftovers()
            path = self._directory / str(step)
            if step in self._damaged and path.exists():
                _remove(path)
            self._damaged.discard(step)
            with _synchronous_directories():
                save = _orbax().save_async(str(path), arrays, custom_metadata=about)
            self._pending = self._background.submit(self._finish, save)
        except Exception as error:
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Return when the save in progress, if any, is on the disk and superseded checkpoints are gone.

        Raises: UserError if it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:
            raise self._unwritten(error) from error

    def _finish(self, save: Any) -> None:
        """Wait for a save, then delete the older checkpoints that it replaces."""
        save.result()
        if distributed.is_first():
            whole = [step for step in self._steps() if step not in self._damaged]
            for step in set(self._steps()) - set(whole[-self._keep :]):
                _remove(self._directory / str(step))

    def close(self) -> None:
        """Wait for the save in progress. Raises: UserError if it could not be written."""
        self.wait()

    def restore(self, abstract_state: Any, log: Callable[[str], None] = print) -> tuple[Any, dict[str, Any]] | None:
        """Return (state, progress) of the newest whole checkpoint; None if there is no checkpoint at all.

        Only reads. A damaged checkpoint is passed over, and `log` gets a line about it.

        Args:
            abstract_state: a pytree of jax.ShapeDtypeStruct with shardings, of any mesh; it may be a part of
                what was saved, and only that part is read.

        Raises:
            UserError: all checkpoints are damaged, or the newest whole one is of another model or optimizer.
        """
        problem = ""
        passed_over: set[int] = set()
        for _ in range(MAX_VANISHED):
            steps = [step for step in distributed.from_first(self._steps) if step not in passed_over]
            if not steps:
                break
            path = self._directory / str(steps[-1])
            if problem:
                log(f"{problem}; going back to {path}")
            problem = ""
            try:
                about, state = self._read(path, abstract_state)
            except UserError:
                raise
            except Exception as error:  # orbax and tensorstore raise whatever their parsers happen to raise
                if not distributed.from_first(path.exists):
                    continue  # the training process deleted it after it was listed
                passed_over.add(steps[-1])
                self._damaged.add(steps[-1])
                problem = f"the checkpoint {path} is damaged ({_reason(error)})"
                continue
            self._restored = steps[-1]
            return state, about["progress"]
        else:
            raise UserError(
                f"the checkpoints in {self._directory} are deleted faster than they can be read; try again, or raise "
                "train.checkpoint_every_secs of the run that trains there"
            )
        if passed_over:
            raise UserError(
                f"{problem or 'all checkpoints are damaged'}, and no older one is intact; restore it from a copy, or "
                f"delete {self._directory} to restart the run"
            )
        return None

    def _read(self, path: Path, abstract_state: Any) -> tuple[dict[str, Any], Any]:
        wanted = _named(abstract_state)
        about, arrays = distributed.together(lambda: self._parts(path, wanted))
        for name, checksum in _checksums(arrays).items():
            if checksum != about["arrays"][name][2]:
                raise ValueError(f"the checksum of {name} is wrong")
        return about, jax.tree.unflatten(jax.tree.structure(abstract_state), [arrays[name] for name in wanted])

    def _parts(self, path: Path, wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        about = _unsealed(_orbax().metadata(str(path)).custom_metadata)
        for name, abstract in wanted.items():
            saved = about["arrays"].get(name, ["nothing", []])[:2]
            if saved != _kind(abstract):  # orbax would convert without a word
                raise UserError(
                    f"the checkpoint {path} is not of this run: {name} is {_shown(*saved)} there and "
                    f"{_shown(*_kind(abstract))} here; use the config it was trained with, or another "
                    "directory"
                )
        return about, _load(path, wanted)

    def _steps(self) -> list[int]:
        if not self._directory.is_dir():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdecimal())

    def _remove_leftovers(self) -> None:
        if distributed.is_first():
            self._directory.mkdir(parents=True, exist_ok=True)
            for path in self._directory.iterdir():
                if LEFTOVER.fullmatch(path.name):
                    _delete(path)

    def _unwritten(self, error: Exception) -> Exception:
        if distributed.is_loss(error):
            return error
        if isinstance(error, OSError) or "os_error" in str(error):  # tensorstore raises ValueError
            return UserError(
                f"cannot write a checkpoint to {self._directory}: {_reason(error)}; free some space or "
                "choose another directory"
            )
        return error


@functools.cache
def _orbax():
    from orbax.checkpoint import v1 as ocp

    sys.unraisablehook = functools.partial(_without_late_writes, sys.unraisablehook)
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # what it logs as an error it also raises
    return ocp


def _without_late_writes(hook: Callable, unraisable: Any) -> None:
    """Pass an unraisable exception to `hook`, unless it comes from writes in progress when a save failed.

    tensorstore prints one traceback for each of them, in addition to the error that `wait` raises.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def _synchronous_directories():
    """Return a context in which a save creates its directories synchronously.

    If orbax fails to create a directory in the background, it blocks the process for 5 minutes.
    """
    ocp = _orbax()
    context = ocp.Context()
    context.asynchronous.create_directories_asynchronously = False
    return context


def _load(path: Path, wanted: dict[str, Any]) -> dict[str, jax.Array]:
    ocp = _orbax()
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    # Each process reads by itself: orbax would have those whose part is whole wait for one whose part is not.
    process = jax.process_index()
    context.multiprocessing.primary_host, context.multiprocessing.active_processes = process, {process}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{process}"
    hook = sys.unraisablehook
    try:
        with context, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sys.unraisablehook = lambda _: None
            return ocp.load(str(path), wanted)
    except Exception:
        time.sleep(0.2)  # the reads that orbax gave up at the first failure end, and complain to nobody
        raise
    finally:
        sys.unraisablehook = hook


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _named(tree: Any) -> dict[str, Any]:
    """Return {path: leaf}, in the order of the leaves."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _kind(array) -> list:
    return [np.dtype(array.dtype).name, list(array.shape)]


def _shown(dtype: str, shape: list[int]) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"


def _checksums(arrays: dict[str, jax.Array]) -> dict[str, int]:
    # Each is waited for before the next begins: small programs that add up over devices, many under way at once, wait
    # for each other for ever on a CPU whose cores are all taken.
    return {name: int(_checksum(x)) for name, x in arrays.items()}


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """Return a uint32 that changes when any one element does, or when two change places."""
    # Bits times an odd weight by position, summed modulo 2^32: no order of addition, so no mesh, changes it.
    bits = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]).astype(jnp.uint32)
    weight = jnp.ones(x.shape, jnp.uint32)
    stride = 2
    for axis in reversed(range(x.ndim)):
        weight += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(bits * weight, dtype=jnp.uint32)


def _sealed(about: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(about)
    return {"about": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _unsealed(metadata: Any) -> dict[str, Any]:
    metadata = metadata or {}
    text = metadata.get("about")
    if text is None or metadata.get("sha256") != hashlib.sha256(text.encode()).hexdigest():
        raise ValueError("its description is missing or changed")
    return json.loads(text)


def _remove(path: Path) -> None:
    """Delete a checkpoint; once it is begun, it does not look like one."""
    doomed = path.with_name(f"{path.name}.deleted")
    path.rename(doomed)
    _delete(doomed)


def _delete(path: Path) -> None:
    """Delete a directory or a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
