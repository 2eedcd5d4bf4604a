"""The lane engine, for accelerators: cells of equal shape are trained as runs of one program, in this process.

The cells of a group are saved when it starts and do not change until it ends, so a resumed sweep finds its groups and
their checkpoints. Cells without a result and without a group form new groups.

groups/NAME/group.json    cells by position, and R of their program       groups/NAME/checkpoints/
groups/claims/NAME        which process trains it                         lanes.json   measured values of R
"""

import contextlib
import functools
import hashlib
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from smallbatch.data import prepare, tokenizers
from smallbatch.errors import UserError
from smallbatch.files import json_files
from smallbatch.files.locks import locked
from smallbatch.grid.cell_locks import CellLocks
from smallbatch.grid.cells import Cell
from smallbatch.grid.sweep_dir import RESULTS, SweepDirectory
from smallbatch.grid.tasks import Failures, Task, failure
from smallbatch.plan.plan import Plan
from smallbatch.runs import records
from smallbatch.runs import run_dir as workdirs

MAX_LANES = 64


def check(cells: list[Cell], plans: dict[str, Plan]) -> None:
    """Raise UserError for the first cell that cannot share a program with others."""
    for cell in cells:
        plan, reason = plans[cell.id], ""
        if len(plan.stages) > 1:
            reason = "its batch size changes (train.batch_size_schedule)"
        elif plan.mesh.devices > 1:
            reason = f"its mesh has more than one device ({plan.mesh})"
        if reason:
            raise UserError(
                f"cell {cell.id} ({cell.name}) cannot share a program with others: {reason}. Use --engine=local or "
                "ray, or select other cells with --only"
            )


def left_out(cells: list[Cell]) -> str:
    """Return a warning about settings of the cells that this engine ignores; "" if there are none."""
    configs = [cell.config for cell in cells]
    asked = {
        "TensorBoard": any(config.records.tensorboard for config in configs),
        "W&B": any(config.records.wandb != "off" for config in configs),
        "sampled text (train.sample_tokens)": any(config.train.sample_tokens for config in configs),
    }
    names = [name for name, is_asked in asked.items() if is_asked]
    return f"--engine=lanes ignores these settings of the config: {', '.join(names)}" if names else ""


@dataclass(frozen=True)
class Group:
    """Cells that are trained together until all of them have ended."""

    path: Path
    cells: list[str]  # ids, by position in the program
    lanes: int  # runs of the program; at least the number of cells

    @staticmethod
    def read(path: Path) -> "Group":
        fix = f"delete the directory {path}; its cells then restart in a new group"
        group = json_files.read_object(path / "group.json", {"cells": [str], "lanes": int}, "a group of lanes", fix)
        return Group(path, group["cells"], group["lanes"])

    def write(self) -> None:
        """Create the directory of the group."""
        self.remove()
        self.path.mkdir(parents=True)
        records.write_json(self.path / "group.json", {"cells": self.cells, "lanes": self.lanes})

    def remove(self) -> None:
        """Delete the directory, starting with group.json, so that an interrupted deletion leaves no valid group."""
        (self.path / "group.json").unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def is_saved(self) -> bool:
        return any(path.name.isdecimal() for path in self.path.glob("checkpoints/*"))


class LaneEngine:
    """Runs tasks in groups. All of its state is in the sweep directory."""

    def __init__(
        self,
        directory: SweepDirectory,
        cells: list[Cell],
        plans: dict[str, Plan],
        lanes: int | None,
        keep: bool = False,
    ):
        """cells, plans: of the whole grid. lanes: runs per program; None: measured for each shape."""
        self._directory, self._plans, self._lanes, self._keep = directory, plans, lanes, keep
        self._cells = {cell.id: cell for cell in cells}
        self._groups = directory.path / "groups"
        self._claims = CellLocks(self._groups / "claims")
        self._tasks: dict[str, Task] = {}
        self._failures = Failures(directory)

    @property
    def size(self) -> int:
        """Return the number of parallel cells, or 1 if it is still to be measured."""
        return self._lanes or 1

    def run(self, tasks: list[Task], on_change: Callable[[set[str]], None], stop: Callable[[], bool]) -> None:
        """Run tasks until all have ended or `stop()` is true (see `tasks.Engine`).

        An existing group is resumed as a whole, whichever of its cells are among the tasks, since that takes no longer.
        """
        self._tasks, self._failures = {task.cell.id: task for task in tasks}, Failures(self._directory)
        self._groups.mkdir(parents=True, exist_ok=True)
        for shape in dict.fromkeys(self._shapes[cell_id] for cell_id in self._tasks):
            ids = [cell_id for cell_id in self._tasks if self._shapes[cell_id] == shape]
            while not stop() and self._run_group(ids, on_change, stop):
                pass

    def _run_group(self, ids: list[str], on_change: Callable[[set[str]], None], stop: Callable[[], bool]) -> bool:
        """Run one group with some of these cells of equal shape; return False if there is none to run now."""
        held_ids = missing = [cell_id for cell_id in ids if self._is_missing(cell_id)]
        with contextlib.ExitStack() as held:
            try:
                with self._lock():
                    found = self._existing_group(missing, held) or self._new_group(missing, held)
                if found is None:
                    return False
                group, held_ids = found
                self._train(group, held_ids, on_change, stop)
            except Exception as error:
                self._fail(held_ids, error)
            on_change(set())
        return True

    def _existing_group(self, missing: list[str], held: contextlib.ExitStack) -> tuple[Group, list[str]] | None:
        """Return a group of an earlier session and those of its cells that have no result, held by this process."""
        for group in self._unfinished_groups():
            if set(group.cells).isdisjoint(missing):
                continue
            with contextlib.ExitStack() as ours:
                if not ours.enter_context(self._claims.held(group.path.name)):
                    continue
                ids = [cell_id for cell_id in group.cells if cell_id in self._cells and self._hold(cell_id, ours)]
                if not set(ids).isdisjoint(missing):
                    held.enter_context(ours.pop_all())
                    return group, ids
        return None

    def _new_group(self, missing: list[str], held: contextlib.ExitStack) -> tuple[Group, list[str]] | None:
        """Write and return a new group of the first missing cells that are in no other, held by this process."""
        grouped = {cell_id for group in self._unfinished_groups() for cell_id in group.cells}
        free = [cell_id for cell_id in missing if cell_id not in grouped]
        if not free:
            return None
        lanes = self._lanes_of(free[0])
        ids: list[str] = []
        for cell_id in free:
            if len(ids) < lanes and self._hold(cell_id, held):
                ids.append(cell_id)
        name = hashlib.sha256(" ".join(ids).encode()).hexdigest()[:12]
        if not ids or not held.enter_context(self._claims.held(name)):
            return None
        group = Group(self._groups / name, ids, lanes)
        group.write()
        return group, ids

    def _unfinished_groups(self) -> list[Group]:
        """Return the groups with cells that have no result; remove the others."""
        found = []
        for path in sorted(self._groups.glob("*/group.json")):
            group = Group.read(path.parent)
            if all(self._directory.state(cell_id).status in RESULTS for cell_id in group.cells):
                group.remove()  # its process was killed before it removed the group
            else:
                found.append(group)
        return found

    def _hold(self, cell_id: str, held: contextlib.ExitStack) -> bool:
        """Lock a cell without a result and its run directory until `held` closes; return False if they cannot be."""
        with contextlib.ExitStack() as ours:
            if not ours.enter_context(self._directory.locks.held(cell_id)) or not self._is_missing(cell_id):
                return False
            try:
                workdir = self._directory.cell(cell_id)
                ours.enter_context(workdirs.locked(workdir, self._cells[cell_id].config))
            except workdirs.Locked:  # an earlier holder still runs: its lock went stale while its machine slept
                return False
            except UserError as error:
                self._fail([cell_id], error)
                return False
            held.enter_context(ours.pop_all())
            return True

    def _train(
        self, group: Group, ids: list[str], on_change: Callable[[set[str]], None], stop: Callable[[], bool]
    ) -> None:
        import jax

        from smallbatch.training import run
        from smallbatch.training.lanes import train_group
        from smallbatch.training.trainer import Run

        on_change(set(ids))
        dataset = prepare.prepare(self._plans[ids[0]].data)
        tokenizer = tokenizers.load(dataset.dir)
        for cell_id in ids:
            run.describe(self._directory.cell(cell_id), self._cells[cell_id].config, self._plans[cell_id], tokenizer)
        members = [Run(self._plans[id], self._directory.cell(id)) if id in ids else None for id in group.cells]
        devices = math.gcd(group.lanes, jax.device_count())  # it may have changed since the group was formed
        every_secs = self._cells[ids[0]].config.train.checkpoint_every_secs

        def poll(positions: list[int]) -> bool:
            on_change({group.cells[position] for position in positions})
            return stop()

        ended = False
        try:
            ended = train_group(members, group.path, dataset, group.lanes, devices, every_secs, poll, self._keep)
        except Exception:
            ended = not group.is_saved  # without a checkpoint, regrouping its cells loses no work
            raise
        finally:
            if ended:
                with self._lock():
                    group.remove()

    def _fail(self, cell_ids: Iterable[str], error: Exception) -> None:
        """Write an error to the logs of cells, and mark the cells as failed if they should not be retried."""
        outcome, text = failure(error)
        for cell_id in cell_ids:
            log = self._directory.log(cell_id)
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as file:
                file.write(text)
            if cell_id in self._tasks:  # other cells of the group are not tasks of this command
                self._failures.should_retry(self._tasks[cell_id], outcome)

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        """Lock the groups: two processes must not form groups of the same cells."""
        return locked(self._groups / ".lock")

    def _is_missing(self, cell_id: str) -> bool:
        return self._directory.state(cell_id).status == "missing"

    @functools.cached_property
    def _shapes(self) -> dict[str, str]:
        from smallbatch.training.lanes import shape_of

        return {cell_id: shape_of(plan) for cell_id, plan in self._plans.items()}

    def _lanes_of(self, cell_id: str) -> int:
        """Return R for new groups of a cell's shape: as set, or as measured once and stored in lanes.json."""
        import jax

        from smallbatch.training.lanes import choose_lanes

        devices = jax.device_count()
        if self._lanes is not None:
            return -(-self._lanes // devices) * devices
        path, shape = self._directory.path / "lanes.json", self._shapes[cell_id]
        measured = measured_lanes(path)
        most = min(MAX_LANES, list(self._shapes.values()).count(shape))
        key = hashlib.sha256(f"{shape} {most} {devices}".encode()).hexdigest()[:12]
        if key not in measured:
            measured[key] = choose_lanes(self._plans[cell_id], most, devices)
            records.write_json(path, measured)
        return measured[key]


def measured_lanes(path: Path) -> dict[str, int]:
    """Return the valid entries of lanes.json, {shape: R}; none if the file is missing or damaged."""
    try:
        found = json_files.read_object(path, {}, "lanes.json")
    except UserError:
        return {}
    return {shape: lanes for shape, lanes in found.items() if type(lanes) is int and lanes > 0}
