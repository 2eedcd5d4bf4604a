"""Run a sweep: give the cells without a result to an engine until all have ended, and write results.csv."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from smallbatch.config import Config
from smallbatch.data import prepare, tokenizers
from smallbatch.data.stream import check_splits
from smallbatch.errors import UserError
from smallbatch.grid.axes import LEARNING_RATE
from smallbatch.grid.cells import Cell, learning_rate_siblings
from smallbatch.grid.cost import TimeLeft, Work, time_left
from smallbatch.grid.rungs import run_rungs
from smallbatch.grid.status_table import StatusDisplay, table_text
from smallbatch.grid.sweep_dir import RESULTS, State, SweepDirectory
from smallbatch.grid.tasks import Engine, Task
from smallbatch.plan import plan as plans
from smallbatch.runs import records
from smallbatch.specs import DeviceSpec
from smallbatch.training import cloud
from smallbatch.training.signals import Stop

WRITE_SECS = 2.0  # between two versions of results.csv
READ_SECS = 5.0  # between two reads of all states: another sweep command may change them
WAIT_SECS = 2.0  # between two reads when other sweep commands hold all remaining cells


@dataclass(frozen=True)
class SweepPlan:
    """The cells that a sweep command runs."""

    directory: SweepDirectory
    cells: list[Cell]  # of the whole grid
    chosen: list[Cell]  # the cells to run
    plans: dict[str, plans.Plan]  # of all cells
    stop_diverged: bool = False
    halving: int | None = None  # factor of successive halving
    workers: int = 1  # factor by which parallel workers divide the seconds of a result

    @property
    def reopened(self) -> tuple[str, ...]:
        """Return the statuses of earlier commands whose cells this command runs again."""
        return ("failed", *["skipped"] * (not self.stop_diverged), *["cut"] * (not self.halving))


def plan_cells(cells: list[Cell], devices: Callable[[Config], DeviceSpec]) -> dict[str, plans.Plan]:
    """Return {cell id: plan}. devices: returns the devices of a config. Raises UserError that names the cell."""
    vocab_sizes: dict = {}
    found = {}
    for cell in cells:
        spec = plans.data_spec(cell.config)
        if spec not in vocab_sizes:
            vocab_sizes[spec] = prepare.vocab_size(spec)
        try:
            found[cell.id] = plans.make(cell.config, vocab_size=vocab_sizes[spec], devices=devices(cell.config))
        except UserError as error:
            raise UserError(f"cell {cell.id} ({cell.name}): {error}") from error
    return found


def prepare_corpora(cells: list[Cell], cell_plans: dict[str, plans.Plan]) -> dict:
    """Prepare every corpus once, before any worker starts; return {DataSpec: training tokens}.

    Raises UserError for a split smaller than a sequence, or a sample prompt longer than the context.
    """
    from smallbatch.training.run import prompt_ids

    datasets = {spec: prepare.prepare(spec) for spec in {cell_plans[cell.id].data for cell in cells}}
    loaded = {spec: tokenizers.load(dataset.dir) for spec, dataset in datasets.items()}
    for cell in cells:
        plan, train = cell_plans[cell.id], cell.config.train
        check_splits(datasets[plan.data], plan.model.context_tokens)
        try:
            prompt_ids(plan, loaded[plan.data], train.sample_prompt, train.sample_tokens)
        except UserError as error:
            raise UserError(f"cell {cell.id} ({cell.name}): {error}") from error
    return {spec: len(dataset.train) for spec, dataset in datasets.items()}


def run(sweep: SweepPlan, engine: Engine, log: Callable[[str], None], stop: Stop) -> dict[str, State]:
    """Run all missing cells, or until `stop` is requested; write results.csv as cells end. Return {cell id: state}."""
    directory = sweep.directory
    with stop, cloud.Watch(stop.ask), StatusDisplay(sweep.chosen) as display:
        monitor = _Monitor(sweep, display)

        def run_all(due: Callable[[], Sequence[tuple[Cell, int | None]]]) -> bool:
            """Run cells to token counts, or to their ends (None), until none is due; return False if stopped."""
            before: Sequence[tuple[Cell, int | None]] = []
            while not stop.requested and (left := due()):
                holders = directory.locks.holders()
                free = [(cell, until_tokens) for cell, until_tokens in left if cell.id not in holders]
                if free and left != before:  # unchanged after a round: other sweep commands run what is left
                    tasks = [Task(cell, repr(sweep.plans[cell.id].program), until) for cell, until in free]
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
    log("\n".join([table_text(sweep.cells, states, set()), *failure_lines(directory, sweep.chosen, states)]))
    return states


def failure_lines(directory: SweepDirectory, cells: list[Cell], states: dict[str, State]) -> list[str]:
    """Return a line for each failed cell, with its error and its log."""
    lines = []
    for cell in cells:
        if states[cell.id].status == "failed":
            log_path = directory.log(cell.id)
            log = f"; its log: {log_path}" if log_path.exists() else ""  # a worker may have died before
            lines.append(f"failed: {cell.name}: {states[cell.id].error}{log}")
    return lines


def reopen(sweep: SweepPlan) -> None:
    """Delete the marks of earlier commands on cells that this command runs."""
    for cell in sweep.chosen:
        sweep.directory.unmark(cell.id, *sweep.reopened)
    if sweep.stop_diverged:
        _skip_above_diverged(sweep, sweep.directory.states(sweep.cells), set())


def _skip_above_diverged(sweep: SweepPlan, states: dict[str, State], running: set[str]) -> None:
    """Mark missing cells whose learning rate is above that of a diverged sibling as skipped, also in `states`."""
    chosen = {cell.id for cell in sweep.chosen} - running
    for group in learning_rate_siblings(sweep.cells):
        diverged = [cell.flat[LEARNING_RATE] for cell in group if states[cell.id].status == "diverged"]
        lowest = min(diverged, default=math.inf)
        for cell in group:
            if cell.flat[LEARNING_RATE] > lowest and cell.id in chosen and states[cell.id].status == "missing":
                error = f"peak_lr={lowest:g} diverged, all else equal"
                sweep.directory.mark(cell.id, "skipped", {"error": error})
                states[cell.id] = State("skipped", error=error)


class _Monitor:
    """Reads the cells' files during a sweep, writes results.csv, and shows the status."""

    def __init__(self, sweep: SweepPlan, display: StatusDisplay):
        self._sweep, self._display = sweep, display
        self._states = sweep.directory.states(sweep.cells)
        self._running: set[str] = set()
        self._read_at, self._written_at = time.monotonic(), -math.inf
        self._is_written = False  # whether results.csv has the current states
        self._progress: dict[str, tuple[int, float]] = {}  # {id of a chosen cell: tokens, and secs of training so far}
        self._read_progress(cell.id for cell in sweep.chosen)

    def update(self, running: set[str]) -> None:
        """Read the states of cells that ended, skip cells above a diverged one, write and show what is due."""
        now = time.monotonic()
        ended, self._running = self._running - running, running
        if now - self._read_at > READ_SECS:
            self._read_at = now
            ended = {cell_id for cell_id, state in self._states.items() if state.status not in RESULTS}
        states = {cell_id: self._sweep.directory.state(cell_id) for cell_id in ended}
        changed = {cell_id: state for cell_id, state in states.items() if state != self._states[cell_id]}
        self._states |= changed
        self._read_progress(changed.keys() & self._progress.keys())
        if self._sweep.stop_diverged and any(state.status == "diverged" for state in changed.values()):
            _skip_above_diverged(self._sweep, self._states, running)
        self._is_written &= not changed
        if not self._is_written and now - self._written_at > WRITE_SECS:
            self._written_at, self._is_written = now, True
            self._sweep.directory.write_results(self._sweep.cells, self._states)
        if self._display.is_due:
            self.show()

    def show(self) -> None:
        """Show the status."""
        running = self._running & self._progress.keys()
        self._read_progress(running)
        # A cell that ended before its budget counts with the tokens it has.
        is_missing = lambda cell_id: self._states[cell_id].status == "missing"
        budgets = {cell_id: self._sweep.plans[cell_id].budget_tokens for cell_id in self._progress}
        done = sum(tokens for tokens, _ in self._progress.values())
        left = {cell_id: budgets[cell_id] - tokens for cell_id, (tokens, _) in self._progress.items()}
        left = {cell_id: tokens for cell_id, tokens in left.items() if is_missing(cell_id)}
        self._display.show(self._states, self._running, done, done + sum(left.values()), self._time_left(left, running))

    def _read_progress(self, cell_ids: Iterable[str]) -> None:
        for cell_id in cell_ids:
            tokens, metrics = self._states[cell_id].tokens, self._sweep.directory.cell(cell_id).metrics
            self._progress[cell_id] = records.last_tokens_and_secs(metrics) if tokens is None else (tokens, 0.0)

    def _time_left(self, left: dict[str, int], running: set[str]) -> TimeLeft | None:
        def work(cell_id: str, tokens: int, secs: float = 0.0) -> Work:
            plan = self._sweep.plans[cell_id]
            return Work(plan, tokens * plan.flops_per_token, secs)

        done = [
            work(cell_id, state.tokens, state.secs / self._sweep.workers)
            for cell_id, state in self._states.items()
            if state.tokens and state.secs
        ]
        for cell_id in running:
            tokens, secs = self._progress[cell_id]
            done.append(work(cell_id, tokens, secs / len(running)))
        return time_left(done, [work(cell_id, tokens) for cell_id, tokens in left.items()])
