"""Run a sweep: give the cells without a result to an engine until all have ended, and write results.csv."""

import math
import time
from collections.abc import Callable, Iterable, Sequence

from smallbatch.grid.cells import Cell
from smallbatch.grid.cost import Work, time_left_text
from smallbatch.grid.rungs import run_rungs
from smallbatch.grid.status_table import status_lines
from smallbatch.grid.sweep_dir import RESULTS, State
from smallbatch.grid.sweep_plan import SweepPlan
from smallbatch.grid.tasks import Engine, Task
from smallbatch.runs import records
from smallbatch.runs.progress import Progress
from smallbatch.training import cloud
from smallbatch.training.signals import Stop

READ_SECS = 5.0  # between two reads of all states: another sweep command may change them
REFRESH_SECS = 1.0  # between two updates of the progress
LINE_SECS = 30.0  # between two lines of progress in a log file
WAIT_SECS = 2.0  # between two reads when other sweep commands hold all remaining cells


def run(sweep: SweepPlan, engine: Engine, log: Callable[[str], None], stop: Stop) -> dict[str, State]:
    """Run all missing cells, or until `stop` is requested; write results.csv as cells end. Return {cell id: state}."""
    directory = sweep.directory
    with stop, cloud.PreemptionWatcher(stop.request), Progress("sweep", None, every_secs=LINE_SECS) as progress:
        monitor = _Monitor(sweep, progress)

        def run_all(due: Callable[[], Sequence[tuple[Cell, int | None]]]) -> bool:
            """Run cells to token counts, or to their ends (None), until none is due; return False if stopped."""
            before: Sequence[tuple[Cell, int | None]] = []
            while not stop.requested and (left := due()):
                holders = directory.locks.holders()
                free = [(cell, until_tokens) for cell, until_tokens in left if cell.id not in holders]
                if free and left != before:  # unchanged after a round: other sweep commands run what is left
                    tasks = [Task(cell, repr(sweep.plans[cell.id].program()), until) for cell, until in free]
                    engine.run(tasks, monitor.update, lambda: stop.requested)
                    before = left
                else:
                    monitor.update(holders)
                    time.sleep(WAIT_SECS)
                    before = []
            return not stop.requested

        if sweep.halving:
            run_rungs(directory, sweep.chosen, sweep.plans, sweep.halving, run_all)
        run_all(lambda: [(cell, None) for cell in sweep.chosen if directory.state(cell.id).status == "missing"])
        monitor.update(set())
        monitor.show()
    states = directory.states(sweep.cells)
    directory.write_results(sweep.cells, states)
    log("\n".join(status_lines(directory, sweep.cells, states, set())))
    return states


class _Monitor:
    """Reads the cells' files during a sweep, writes results.csv, and shows the progress."""

    def __init__(self, sweep: SweepPlan, progress: Progress):
        self._sweep, self._progress = sweep, progress
        self._states = sweep.directory.states(sweep.cells)
        self._running: set[str] = set()
        self._read_at, self._shown_at = time.monotonic(), -math.inf
        self._trained: dict[str, tuple[int, float]] = {}  # {id of a chosen cell: tokens, and seconds of training}
        self._read_trained(cell.id for cell in sweep.chosen)

    def update(self, running: set[str]) -> None:
        """Read the states of cells that ended, and regularly of all; skip cells above one that diverged."""
        now = time.monotonic()
        ended, self._running = self._running - running, running
        if now - self._read_at > READ_SECS:
            self._read_at = now
            ended = {cell_id for cell_id, state in self._states.items() if state.status not in RESULTS}
        states = {cell_id: self._sweep.directory.state(cell_id) for cell_id in ended}
        changed = {cell_id: state for cell_id, state in states.items() if state != self._states[cell_id]}
        self._states |= changed
        if changed:
            self._sweep.skip_above_diverged(self._states, running)
            self._sweep.directory.write_results(self._sweep.cells, self._states)
        self._read_trained(self._trained.keys() & changed.keys())
        if now - self._shown_at > REFRESH_SECS:
            self._shown_at = now
            self.show()

    def _read_trained(self, cell_ids: Iterable[str]) -> None:
        for cell_id in cell_ids:
            tokens, metrics = self._states[cell_id].tokens, self._sweep.directory.cell(cell_id).metrics
            self._trained[cell_id] = records.last_tokens_and_secs(metrics) if tokens is None else (tokens, 0.0)

    def show(self) -> None:
        """Show the progress of the chosen cells."""
        plans, trained, running = self._sweep.plans, self._trained, self._running & self._trained.keys()
        self._read_trained(running)
        missing = [cell_id for cell_id in trained if self._states[cell_id].status == "missing"]
        left = {cell_id: plans[cell_id].budget_tokens - trained[cell_id][0] for cell_id in missing}
        done_tokens = sum(tokens for tokens, _ in trained.values())
        measured = [  # (id, tokens, seconds that they add to the time of the sweep)
            *((id, state.tokens, (state.secs or 0) / self._sweep.workers) for id, state in self._states.items()),
            *((id, trained[id][0], trained[id][1] / len(running)) for id in running),
        ]
        done = [Work(plans[id], tokens * plans[id].flops_per_token, secs) for id, tokens, secs in measured if tokens]
        remaining = [Work(plans[id], tokens * plans[id].flops_per_token) for id, tokens in left.items()]
        self._progress.update(
            done_tokens,
            cells=f"{len(trained) - len(missing):,}/{len(trained):,}",
            progress=f"{done_tokens / max(done_tokens + sum(left.values()), 1):.0%}",
            left=time_left_text(done, remaining),
        )
