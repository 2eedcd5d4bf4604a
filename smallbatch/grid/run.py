"""A sweep from cells to results.csv: what is missing is given to an engine, again and again, until nothing is."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from smallbatch import plan as plans
from smallbatch import records
from smallbatch.data import prepare
from smallbatch.grid import cost as costs
from smallbatch.grid import halving
from smallbatch.grid.board import Board, text
from smallbatch.grid.cells import Cell
from smallbatch.grid.directory import RESULTS, State, SweepDirectory
from smallbatch.grid.tasks import Engine, Task
from smallbatch.stopping import Stop

WRITE_EVERY_SECS = 2.0
WAIT_SECS = 2.0  # between two looks at cells that another sweep is at work on


@dataclass(frozen=True)
class Sweep:
    """What a sweep runs, and where."""

    directory: SweepDirectory
    cells: list[Cell]  # of the whole grid
    chosen: list[Cell]  # of these, the ones to run
    plans: dict[str, plans.Plan]
    stop_diverged: bool = False
    halving: int | None = None  # factor of successive halving

    def open_cells(self) -> list[Cell]:
        """Return the chosen cells that have not ended; what was cut or skipped goes on where that is not asked for."""
        asked = [name for name, on in (("skipped", self.stop_diverged), ("cut", self.halving)) if on]
        return [cell for cell in self.chosen if self.directory.state(cell.id).status not in (*RESULTS, *asked)]


def plan_cells(cells: list[Cell], devices: int = 1, platform: str = "cpu") -> dict[str, plans.Plan]:
    """Return the plan of every cell on a worker's devices. Raises UserError that names the cell."""
    vocab_sizes: dict = {}
    found = {}
    for cell in cells:
        spec = plans.data_spec(cell.config)
        if spec not in vocab_sizes:
            vocab_sizes[spec] = prepare.vocab_size(spec)
        found[cell.id] = costs.plan_of(cell, vocab_sizes[spec], devices, platform)
    return found


def prepare_corpora(cell_plans: Iterable[plans.Plan]) -> dict:
    """Prepare every corpus once, before workers want it; return {DataSpec: training tokens}."""
    return {spec: len(prepare.prepare(spec).train) for spec in {plan.data for plan in cell_plans}}


def run(sweep: Sweep, engine: Engine, say: Callable[[str], None]) -> dict[str, State]:
    """Run what is missing until nothing is, or a stop is asked for; write results.csv as cells end."""
    watch = _Watch(sweep)
    for cell in sweep.chosen:
        sweep.directory.unmark(cell.id, "failed")  # a new command tries again
    with Stop() as stop, Board(sweep.cells) as board:
        stopping = lambda: stop.requested
        if sweep.halving:
            _halve(sweep, sweep.halving, engine, watch, board, stopping)
        while not stop.requested:
            if sweep.stop_diverged:
                skip_above_diverged(sweep)
            failed = {cell.id for cell in sweep.chosen if sweep.directory.state(cell.id).status == "failed"}
            left = [cell for cell in sweep.open_cells() if cell.id not in failed]
            if not left:
                break
            holders = sweep.directory.claims.holders()
            free = [cell for cell in left if cell.id not in holders]
            if not free:
                watch.look(board, holders)
                time.sleep(WAIT_SECS)
                continue
            tasks = [Task(cell, repr(sweep.plans[cell.id].program)) for cell in free]
            engine.run(tasks, lambda running: watch.look(board, running), stopping)
        states = watch.write()
    say(text(sweep.cells, states, set()))
    for cell in sweep.chosen:
        if states[cell.id].status == "failed":
            say(f"failed: {cell.name}: {states[cell.id].error}; its log: {sweep.directory.log(cell.id)}")
    return states


def _halve(sweep: Sweep, factor: int, engine, watch: "_Watch", board: Board, stopping: Callable[[], bool]) -> None:
    def run_until(due: list[tuple[Cell, int]]) -> bool:
        tasks = [Task(cell, repr(sweep.plans[cell.id].program), tokens) for cell, tokens in due]
        engine.run(tasks, lambda running: watch.look(board, running), stopping)
        return not stopping()

    halving.climb(sweep.directory, sweep.chosen, sweep.plans, factor, run_until)


def skip_above_diverged(sweep: Sweep) -> None:
    """Mark cells that differ from a diverged one by a higher learning rate alone."""
    key = "optimizer.peak_lr"
    others = lambda cell: repr({k: v for k, v in cell.values.items() if k != key})
    diverged = {}
    for cell in sweep.cells:
        if sweep.directory.state(cell.id).status == "diverged":
            rate = cell.config.optimizer.peak_lr
            diverged[others(cell)] = min(rate, diverged.get(others(cell), rate))
    for cell in sweep.open_cells():
        if cell.config.optimizer.peak_lr > diverged.get(others(cell), float("inf")):
            about = f"peak_lr={diverged[others(cell)]:g} diverged, all else equal"
            sweep.directory.mark(cell.id, "skipped", {"error": about})


class _Watch:
    """Looks at the cells' files now and then; a cell that has ended is not looked at again."""

    def __init__(self, sweep: Sweep):
        self._sweep = sweep
        self._ended: dict[str, State] = {}
        self._written = 0.0
        self._total = sum(plan.budget_tokens for plan in sweep.plans.values())

    def look(self, board: Board, running: set[str]) -> None:
        """Show how the sweep stands; write results.csv when cells have ended."""
        before = len(self._ended)
        states = self._states()
        now = time.monotonic()
        if len(self._ended) > before and now - self._written > WRITE_EVERY_SECS:
            self.write()
        done = sum(state.tokens or 0 for state in self._ended.values())
        done += sum(self._under_way(cell_id) for cell_id in running if cell_id not in self._ended)
        board.show(states, running, done, self._total)

    def write(self) -> dict[str, State]:
        """Write results.csv and return all states."""
        self._written = time.monotonic()
        return self._sweep.directory.write_results(self._sweep.cells)

    def _states(self) -> dict[str, State]:
        states = {}
        for cell in self._sweep.cells:
            state = self._ended.get(cell.id) or self._sweep.directory.state(cell.id)
            if state.status in ("done", "diverged"):
                self._ended[cell.id] = state
            states[cell.id] = state
        return states

    def _under_way(self, cell_id: str) -> int:
        path = self._sweep.directory.cell(cell_id).metrics
        if not path.exists():
            return 0
        found = records.read_metrics(path)
        return found[-1]["tokens"] if found else 0
