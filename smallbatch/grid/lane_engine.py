"""The engine for an accelerator: cells of equal shape go as lanes of one program, in this process.

Which cells form a group is written down when it begins, and holds until it ends: a sweep that goes on finds its groups,
and their checkpoints, again. Cells that have no result and are of no such group form the next ones.

groups/NAME/group.json    its cells, by lane, and how many lanes there are       groups/NAME/checkpoints/
groups/claims/NAME        who is at work on it                                   lanes.json   numbers that were measured
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

MOST_LANES = 64


def check(cells: list[Cell], plans: dict[str, Plan]) -> None:
    """Raise UserError that names the first cell that cannot be a lane."""
    for cell in cells:
        plan, reason = plans[cell.id], ""
        if plan.later:
            reason = "its batch grows (train.batch_size_schedule), and that of a lane stays"
        elif plan.mesh.devices > 1:
            reason = f"its mesh asks for more than one device ({plan.mesh}), and a lane has one"
        if reason:
            raise UserError(
                f"cell {cell.id} ({cell.name}) cannot be a lane: {reason}; choose --engine=local or ray, "
                "or other cells with --only"
            )


def left_out(cells: list[Cell]) -> str:
    """Say what cells ask for that lanes leave out; "" where they ask for nothing of it."""
    records_of = [cell.config.records for cell in cells]
    asked = {
        "TensorBoard": any(section.tensorboard for section in records_of),
        "W&B": any(section.wandb != "off" for section in records_of),
        "sampled text (train.sample_tokens)": any(cell.config.train.sample_tokens for cell in cells),
    }
    names = [name for name, is_asked in asked.items() if is_asked]
    return f"lanes leave out what the config asks for: {', '.join(names)}" if names else ""


@dataclass(frozen=True)
class Group:
    """Cells that train together until all of them have ended."""

    path: Path
    cells: list[str]  # ids, by lane
    lanes: int  # as many as there are cells, or more

    @staticmethod
    def read(path: Path) -> "Group":
        fix = f"delete the directory {path}; its cells then restart in a new group"
        group = json_files.read_object(path / "group.json", {"cells": [str], "lanes": int}, "a group of lanes", fix)
        return Group(path, group["cells"], group["lanes"])

    def write(self) -> None:
        """Begin it."""
        self.remove()
        self.path.mkdir(parents=True)
        records.write_json(self.path / "group.json", {"cells": self.cells, "lanes": self.lanes})

    def remove(self) -> None:
        """Forget it: its membership first, for this may be killed half-way."""
        (self.path / "group.json").unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def is_saved(self) -> bool:
        return any(path.name.isdecimal() for path in self.path.glob("checkpoints/*"))


class LaneEngine:
    """Runs tasks in groups; holds nothing that is not in the sweep directory."""

    def __init__(
        self,
        directory: SweepDirectory,
        cells: list[Cell],
        plans: dict[str, Plan],
        lanes: int | None,
        keep: bool = False,
    ):
        """cells, plans: of the whole grid. lanes: how many at once; None: measured for each shape."""
        self._directory, self._plans, self._lanes, self._keep = directory, plans, lanes, keep
        self._cells = {cell.id: cell for cell in cells}
        self._groups = directory.path / "groups"
        self._claims = CellLocks(self._groups / "claims")
        self._tasks: dict[str, Task] = {}
        self._failures = Failures(directory)

    @property
    def size(self) -> int:
        """Return how many cells go at a time, as far as that is known."""
        return self._lanes or 1

    def run(self, tasks: list[Task], on_change: Callable[[set[str]], None], stop: Callable[[], bool]) -> None:
        """Run tasks until all have ended, or until `stop()` says so (see tasks.Engine).

        A group that was begun goes on as a whole, whichever of its cells are asked for: the lanes take the same time.
        """
        self._tasks, self._failures = {task.cell.id: task for task in tasks}, Failures(self._directory)
        self._groups.mkdir(parents=True, exist_ok=True)
        for shape in dict.fromkeys(self._shapes[cell_id] for cell_id in self._tasks):
            ids = [cell_id for cell_id in self._tasks if self._shapes[cell_id] == shape]
            while not stop() and self._run_group(ids, on_change, stop):
                pass

    def _run_group(self, ids: list[str], on_change: Callable[[set[str]], None], stop: Callable[[], bool]) -> bool:
        """Run a group that has some of these cells, of equal shape; return False if there is none to run now."""
        live = waiting = [cell_id for cell_id in ids if self._is_missing(cell_id)]
        with contextlib.ExitStack() as held:
            try:
                with self._alone():
                    found = self._begun(waiting, held) or self._formed(waiting, held)
                if found is None:
                    return False
                group, live = found
                self._train(group, live, on_change, stop)
            except Exception as error:
                self._fail(live, error)
            on_change(set())
        return True

    def _begun(self, waiting: list[str], held: contextlib.ExitStack) -> tuple[Group, list[str]] | None:
        """Return a group that an earlier session began, and those of its cells that go on: all that are missing."""
        for group in self._written():
            if set(group.cells).isdisjoint(waiting):
                continue
            with contextlib.ExitStack() as ours:
                if not ours.enter_context(self._claims.held(group.path.name)):
                    continue
                live = [cell_id for cell_id in group.cells if cell_id in self._cells and self._hold(cell_id, ours)]
                if not set(live).isdisjoint(waiting):
                    held.enter_context(ours.pop_all())
                    return group, live
        return None

    def _formed(self, waiting: list[str], held: contextlib.ExitStack) -> tuple[Group, list[str]] | None:
        """Return a new group, written down, and its cells: the first that wait and are of no other group."""
        elsewhere = {cell_id for group in self._written() for cell_id in group.cells}
        free = [cell_id for cell_id in waiting if cell_id not in elsewhere]
        if not free:
            return None
        lanes = self._lanes_of(free[0])
        live: list[str] = []
        for cell_id in free:
            if len(live) < lanes and self._hold(cell_id, held):
                live.append(cell_id)
        name = hashlib.sha256(" ".join(live).encode()).hexdigest()[:12]
        if not live or not held.enter_context(self._claims.held(name)):
            return None
        group = Group(self._groups / name, live, lanes)
        group.write()
        return group, live

    def _written(self) -> list[Group]:
        """Return the groups that have cells without a result."""
        found = []
        for path in sorted(self._groups.glob("*/group.json")):
            group = Group.read(path.parent)
            if all(self._directory.state(cell_id).status in RESULTS for cell_id in group.cells):
                group.remove()  # as who ran it was about to
            else:
                found.append(group)
        return found

    def _hold(self, cell_id: str, held: contextlib.ExitStack) -> bool:
        """Hold a missing cell and its run directory as long as `held`; return False where that cannot be."""
        with contextlib.ExitStack() as ours:
            if not ours.enter_context(self._directory.locks.held(cell_id)) or not self._is_missing(cell_id):
                return False
            try:
                workdir = self._directory.cell(cell_id)
                ours.enter_context(workdirs.claimed(workdir, self._cells[cell_id].config))
            except workdirs.Locked:  # by who held the claim before, and was taken for dead because its machine slept
                return False
            except UserError as error:
                self._fail([cell_id], error)
                return False
            held.enter_context(ours.pop_all())
            return True

    def _train(
        self, group: Group, live: list[str], on_change: Callable[[set[str]], None], stop: Callable[[], bool]
    ) -> None:
        import jax

        from smallbatch.training.lanes import LaneTrainer

        on_change(set(live))
        dataset = prepare.prepare(self._plans[live[0]].data)
        self._write_about(live, dataset.dir)
        member = lambda cell_id: (self._plans[cell_id], self._directory.cell(cell_id).path) if cell_id in live else None
        devices = math.gcd(group.lanes, jax.device_count())  # there may be others than when it was begun
        every_secs = self._cells[live[0]].config.train.checkpoint_every_secs
        members = [member(cell_id) for cell_id in group.cells]

        def look(lanes: set[int]) -> bool:
            on_change({group.cells[i] for i in lanes})
            return stop()

        ended = False
        try:
            trainer = LaneTrainer(members, group.path, dataset, group.lanes, devices, every_secs, self._keep)
            ended = trainer.run(look)
        except Exception:
            ended = not group.is_saved  # its cells may do better in another one
            raise
        finally:
            if ended:
                with self._alone():
                    group.remove()

    def _write_about(self, cell_ids: list[str], dataset: Path) -> None:
        from smallbatch.training import run

        tokenizer = tokenizers.load(dataset)
        for cell_id in cell_ids:
            workdir = self._directory.cell(cell_id)
            workdirs.take(workdir, self._cells[cell_id].config)
            records.write_json(workdir.plan, self._plans[cell_id].to_dict())
            if tokenizer is not None:
                run.keep_tokenizer(tokenizer, workdir.tokenizer)

    def _fail(self, cell_ids: Iterable[str], error: Exception) -> None:
        """Write an error to the cells' logs, and mark those as failed that it is no use to try again."""
        answer, text = failure(error)
        for cell_id in cell_ids:
            log = self._directory.log(cell_id)
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as file:
                file.write(text)
            if cell_id in self._tasks:  # and not only of a group that others began
                self._failures.should_retry(self._tasks[cell_id], answer)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep others from forming and removing groups: two must not form groups of the same cells."""
        return locked(self._groups / ".lock")

    def _is_missing(self, cell_id: str) -> bool:
        return self._directory.state(cell_id).status == "missing"

    @functools.cached_property
    def _shapes(self) -> dict[str, str]:
        from smallbatch.training.lanes import shape_of

        return {cell_id: shape_of(plan) for cell_id, plan in self._plans.items()}

    def _lanes_of(self, cell_id: str) -> int:
        """Return how many lanes new groups of a cell's shape have: as asked, as written down, or as measured now."""
        import jax

        from smallbatch.training.lanes import choose_lanes

        devices = jax.device_count()
        if self._lanes is not None:
            return -(-self._lanes // devices) * devices
        path, shape = self._directory.path / "lanes.json", self._shapes[cell_id]
        known = _measured(path)
        most = min(MOST_LANES, list(self._shapes.values()).count(shape))
        key = hashlib.sha256(f"{shape} {most} {devices}".encode()).hexdigest()[:12]
        if key not in known:
            known[key] = choose_lanes(self._plans[cell_id], most, devices)
            records.write_json(path, known)
        return known[key]


def _measured(path: Path) -> dict[str, int]:
    """Return the numbers of lanes that were measured before; empty if the file is missing or damaged."""
    try:
        return {key: lanes for key, lanes in json_files.read_object(path, {}, "lanes.json").items() if _is_count(lanes)}
    except UserError:
        return {}


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1
