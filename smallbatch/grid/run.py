"""A sweep from cells to results.csv: what is missing is given to an engine, again and again, until nothing is."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from smallbatch.config import Config
from smallbatch.data import prepare, tokenizers
from smallbatch.data.stream import check_splits
from smallbatch.errors import UserError
from smallbatch.grid import rungs as halving
from smallbatch.grid.axes import LEARNING_RATE
from smallbatch.grid.cells import Cell, rivals
from smallbatch.grid.status_table import Board, text
from smallbatch.grid.sweep_dir import RESULTS, State, SweepDirectory
from smallbatch.grid.tasks import Engine, Task
from smallbatch.grid.time_left import TimeLeft, Work, time_left
from smallbatch.plan import plan as plans
from smallbatch.runs import records
from smallbatch.specs import DeviceSpec
from smallbatch.training import cloud
from smallbatch.training.signals import Stop

WRITE_SECS = 2.0
LOOK_SECS = 5.0  # between two looks at all cells: another sweep may be at work on some
WAIT_SECS = 2.0  # between two looks where all that is left is under way elsewhere


@dataclass(frozen=True)
class Sweep:
    """What a sweep runs, and where."""

    directory: SweepDirectory
    cells: list[Cell]  # of the whole grid
    chosen: list[Cell]  # of these, the ones to run
    plans: dict[str, plans.Plan]
    stop_diverged: bool = False
    halving: int | None = None  # factor of successive halving
    workers: int = 1  # factor by which parallel workers divide the seconds of a result

    @property
    def reopened(self) -> tuple[str, ...]:
        """Return the statuses of an earlier command that this one does not leave at that."""
        return ("failed", *["skipped"] * (not self.stop_diverged), *["cut"] * (not self.halving))

    def missing(self) -> list[Cell]:
        """Return the chosen cells that are to be run."""
        return [cell for cell in self.chosen if self.directory.state(cell.id).status == "missing"]


def plan_cells(cells: list[Cell], devices: Callable[[Config], DeviceSpec]) -> dict[str, plans.Plan]:
    """Return the plan of every cell on the devices that its config gets. Raises UserError that names the cell."""
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


def prepare_corpora(cell_plans: Iterable[plans.Plan]) -> dict:
    """Prepare every corpus once, before the workers start; return {DataSpec: training tokens}.

    Raises: UserError for a split that is smaller than a sequence, before any cell trains.
    """
    contexts = {(plan.data, plan.model.context_tokens) for plan in cell_plans}
    datasets = {spec: prepare.prepare(spec) for spec in {spec for spec, _ in contexts}}
    for spec, context_tokens in contexts:
        check_splits(datasets[spec], context_tokens)
    return {spec: len(dataset.train) for spec, dataset in datasets.items()}


def check_prompts(cells: list[Cell], cell_plans: dict[str, plans.Plan]) -> None:
    """Raise UserError, with the cell, if a sample prompt does not fit the context. Corpora must be prepared."""
    from smallbatch.training.run import prompt_ids

    loaded: dict = {}
    for cell in cells:
        plan, train = cell_plans[cell.id], cell.config.train
        if plan.data not in loaded:
            loaded[plan.data] = tokenizers.load(prepare.dataset_dir(plan.data))
        try:
            prompt_ids(plan, loaded[plan.data], train.sample_prompt, train.sample_tokens)
        except UserError as error:
            raise UserError(f"cell {cell.id} ({cell.name}): {error}") from error


def run(sweep: Sweep, engine: Engine, log: Callable[[str], None], stop: Stop) -> dict[str, State]:
    """Run what is missing until nothing is, or `stop` asks for an end; write results.csv as cells end."""
    with stop, cloud.PreemptionWatcher(stop.request), Board(sweep.chosen) as board:
        watch = _Watch(sweep, board)

        def run_all(due: Callable[[], Sequence[tuple[Cell, int | None]]]) -> bool:
            """Run cells to token counts, None for their ends, until none is due; False if it was stopped before."""
            before: Sequence[tuple[Cell, int | None]] = []
            while not stop.requested and (left := due()):
                holders = sweep.directory.claims.holders()
                free = [(cell, until_tokens) for cell, until_tokens in left if cell.id not in holders]
                if free and left != before:  # where a round changes nothing, others are at work on what is left
                    tasks = [Task(cell, repr(sweep.plans[cell.id].program()), until) for cell, until in free]
                    engine.run(tasks, watch.look, lambda: stop.requested)
                else:
                    watch.look(holders)
                    time.sleep(WAIT_SECS)
                    left = []  # and then another round
                before = left
            return not stop.requested

        if sweep.halving:
            halving.climb(sweep.directory, sweep.chosen, sweep.plans, sweep.halving, run_all)
        run_all(lambda: [(cell, None) for cell in sweep.missing()])
        watch.look(set())
        watch.show()  # what ended last, too
    states = sweep.directory.states(sweep.cells)
    sweep.directory.write_results(sweep.cells, states)
    log(text(sweep.cells, states, set()))
    for line in failures(sweep.directory, sweep.chosen, states):
        log(line)
    return states


def failures(directory: SweepDirectory, cells: list[Cell], states: dict[str, State]) -> list[str]:
    """Return a line for each failed cell: why, and which file has more."""
    lines = []
    for cell in cells:
        if states[cell.id].status == "failed":
            log_path = directory.log(cell.id)
            more = f"; its log: {log_path}" if log_path.exists() else ""  # no worker may have come so far
            lines.append(f"failed: {cell.name}: {states[cell.id].error}{more}")
    return lines


def reopen(sweep: Sweep) -> None:
    """Forget why cells were not finished by an earlier command, if this one is to run them."""
    for cell in sweep.chosen:
        sweep.directory.unmark(cell.id, *sweep.reopened)
    if sweep.stop_diverged:
        skip_above_diverged(sweep, sweep.directory.states(sweep.cells), set())


def skip_above_diverged(sweep: Sweep, states: dict[str, State], running: set[str]) -> None:
    """Mark missing cells that differ from a diverged one by a higher learning rate alone; `states` learns of it."""
    chosen = {cell.id for cell in sweep.chosen} - running
    for group in rivals(sweep.cells):
        diverged = [cell.flat[LEARNING_RATE] for cell in group if states[cell.id].status == "diverged"]
        lowest = min(diverged, default=math.inf)
        for cell in (cell for cell in group if cell.flat[LEARNING_RATE] > lowest):
            if cell.id in chosen and states[cell.id].status == "missing":
                about = f"peak_lr={lowest:g} diverged, all else equal"
                sweep.directory.mark(cell.id, "skipped", {"error": about})
                states[cell.id] = State("skipped", error=about)


class _Watch:
    """Looks at the cells' files: at once where an engine says that a cell has ended, now and then at all."""

    def __init__(self, sweep: Sweep, board: Board):
        self._sweep, self._board = sweep, board
        self._states = sweep.directory.states(sweep.cells)
        self._running: set[str] = set()
        self._looked, self._written = time.monotonic(), -math.inf
        self._changed = True  # since results.csv was written
        self._tokens = dict.fromkeys((cell.id for cell in sweep.chosen), 0)  # that each has come to
        self._secs = dict.fromkeys(self._tokens, 0.0)  # training time so far, from its records
        self._count(self._tokens.keys())

    def look(self, running: set[str]) -> None:
        """Take in what has ended, skip what need not run, write results.csv and show the board if it is time to."""
        now = time.monotonic()
        ended, self._running = self._running - running, running
        if now - self._looked > LOOK_SECS:
            self._looked = now
            ended = {cell_id for cell_id, state in self._states.items() if state.status not in RESULTS}
        found = {cell_id: self._sweep.directory.state(cell_id) for cell_id in ended}
        news = {cell_id: state for cell_id, state in found.items() if state != self._states[cell_id]}
        self._states |= news
        self._count(news.keys())
        if self._sweep.stop_diverged and any(state.status == "diverged" for state in news.values()):
            skip_above_diverged(self._sweep, self._states, running)
        self._changed |= bool(news)
        if self._changed and now - self._written > WRITE_SECS:
            self._written, self._changed = now, False
            self._sweep.directory.write_results(self._sweep.cells, self._states)
        if self._board.is_due:
            self.show()

    def show(self) -> None:
        """Show the board."""
        self._count(self._running)
        self._board.show(self._states, self._running, sum(self._tokens.values()), self._total(), self._time_left())

    def _count(self, cell_ids: Iterable[str]) -> None:
        """Look how far these cells have come, in whatever session."""
        for cell_id in self._tokens.keys() & set(cell_ids):
            tokens = self._states[cell_id].tokens
            metrics = self._sweep.directory.cell(cell_id).metrics
            self._tokens[cell_id], self._secs[cell_id] = (
                records.last_tokens_and_secs(metrics) if tokens is None else (tokens, 0.0)
            )

    def _time_left(self) -> TimeLeft | None:
        """Return the remaining time of the chosen cells; None if none has trained."""
        work = lambda cell_id, tokens, secs=0.0: Work(
            self._sweep.plans[cell_id], tokens * self._sweep.plans[cell_id].flops_per_token, secs
        )
        done = [
            work(cell_id, state.tokens, state.secs / self._sweep.workers)
            for cell_id, state in self._states.items()
            if state.tokens and state.secs and cell_id in self._sweep.plans
        ]
        under_way = self._running & self._tokens.keys()
        done += [work(cell_id, self._tokens[cell_id], self._secs[cell_id] / len(under_way)) for cell_id in under_way]
        left = [
            work(cell_id, self._sweep.plans[cell_id].budget_tokens - tokens)
            for cell_id, tokens in self._tokens.items()
            if self._states[cell_id].status == "missing"
        ]
        return time_left(done, left)

    def _total(self) -> int:
        """Return what `_tokens` will add up to in the end: a cell that ended before its budget stays where it is."""
        budget = lambda cell_id: self._sweep.plans[cell_id].budget_tokens
        return sum(
            budget(cell_id) if self._states[cell_id].status == "missing" else tokens
            for cell_id, tokens in self._tokens.items()
        )
