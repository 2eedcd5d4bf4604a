"""The engine for an accelerator: cells of equal shape go as lanes of one program, in this process.

Which cells form a group follows from the whole grid and the number of lanes, which is measured once and written down:
a sweep that goes on finds its groups, and their checkpoints, again.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Callable

from smallbatch import records
from smallbatch.data import prepare
from smallbatch.grid.cells import Cell
from smallbatch.grid.directory import RESULTS, SweepDirectory
from smallbatch.grid.tasks import Task
from smallbatch.plan import Plan

MOST_LANES = 64


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

    @property
    def size(self) -> int:
        """Return how many cells go at a time, as far as that is known."""
        return self._lanes or 1

    def run(self, tasks: list[Task], on_change: Callable[[set[str]], None], stop: Callable[[], bool]) -> None:
        """Run every group that has one of the tasks in it, until all have ended or `stop()` says so."""
        import jax

        from smallbatch.training.lanes import shape_of

        wanted = {task.cell.id for task in tasks}
        by_shape: dict[str, list[str]] = {}
        for cell_id in self._cells:
            by_shape.setdefault(shape_of(self._plans[cell_id]), []).append(cell_id)
        for shape, ids in by_shape.items():
            if not wanted & set(ids):
                continue
            lanes = self._lanes_of(shape, ids, jax.device_count())
            for i in range(0, len(ids), lanes):
                group = ids[i : i + lanes]
                if wanted & set(group) and not stop():
                    on_change(set(group))
                    self._run_group(group, lanes, jax.device_count(), stop)
                    on_change(set())

    def _run_group(self, ids: list[str], lanes: int, devices: int, stop: Callable[[], bool]) -> None:
        from smallbatch.training.lanes import LaneTrainer

        with contextlib.ExitStack() as claims:
            if not all(claims.enter_context(self._directory.claims.held(cell_id)) for cell_id in ids):
                return  # another sweep is at one of them; the caller looks again
            if all(self._directory.state(cell_id).status in RESULTS for cell_id in ids):
                return
            name = hashlib.sha256(" ".join(ids).encode()).hexdigest()[:12]
            group = self._directory.path / "groups" / name
            group.mkdir(parents=True, exist_ok=True)
            plans = [self._plans[cell_id] for cell_id in ids]
            for cell_id in ids:
                self._write_about(cell_id)
            every_secs = self._cells[ids[0]].config.train.checkpoint_every_secs
            dataset = prepare.prepare(plans[0].data)
            paths = [self._directory.cell(cell_id).path for cell_id in ids]
            trainer = LaneTrainer(plans, paths, group, dataset, lanes, devices, every_secs)
            if trainer.run(stop) and not self._keep:
                shutil.rmtree(group, ignore_errors=True)

    def _write_about(self, cell_id: str) -> None:
        workdir = self._directory.cell(cell_id)
        workdir.path.mkdir(parents=True, exist_ok=True)
        records.write_json(workdir.config, self._cells[cell_id].config.to_dict())
        records.write_json(workdir.plan, self._plans[cell_id].to_dict())

    def _lanes_of(self, shape: str, ids: list[str], devices: int) -> int:
        """Return how many lanes the groups of a shape have: as asked, as written down, or as measured now."""
        from smallbatch.training.lanes import choose_lanes

        if self._lanes is not None:
            return -(-self._lanes // devices) * devices
        path = self._directory.path / "lanes.json"
        known = records.read_json(path) if path.exists() else {}
        key = hashlib.sha256(shape.encode()).hexdigest()[:12]
        if key not in known:
            known[key] = choose_lanes(self._plans[ids[0]], min(MOST_LANES, len(ids)), devices)
            records.write_json(path, known)
        return known[key]
