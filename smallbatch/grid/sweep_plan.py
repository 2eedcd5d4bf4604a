"""The cells that a sweep command runs, and their plans."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from smallbatch.config import Config
from smallbatch.data import prepare, tokenizers
from smallbatch.data.stream import check_splits
from smallbatch.errors import UserError
from smallbatch.grid.axes import LEARNING_RATE
from smallbatch.grid.cells import Cell, learning_rate_siblings
from smallbatch.grid.sweep_dir import State, SweepDirectory
from smallbatch.plan import plan as plans
from smallbatch.specs import DeviceSpec


@dataclass(frozen=True)
class SweepPlan:
    """The cells that a sweep command runs, and their plans."""

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

    def reopen(self) -> None:
        """Delete the marks of earlier commands on cells that this command runs."""
        for cell in self.chosen:
            self.directory.unmark(cell.id, *self.reopened)
        self.skip_above_diverged(self.directory.states(self.cells), set())

    def skip_above_diverged(self, states: dict[str, State], running: set[str]) -> None:
        """With `stop_diverged`, skip missing cells whose learning rate is above that of a diverged sibling.

        Updates `states`. Cells in `running` are left alone.
        """
        chosen = {cell.id for cell in self.chosen} - running
        for group in learning_rate_siblings(self.cells) if self.stop_diverged else ():
            diverged = [cell.flat[LEARNING_RATE] for cell in group if states[cell.id].status == "diverged"]
            lowest = min(diverged, default=math.inf)
            for cell in group:
                if cell.flat[LEARNING_RATE] > lowest and cell.id in chosen and states[cell.id].status == "missing":
                    error = f"peak_lr={lowest:g} diverged, all else equal"
                    self.directory.mark(cell.id, "skipped", {"error": error})
                    states[cell.id] = State("skipped", error=error)


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
