"""Turn a grid into cells: complete, validated configs with stable ids, before anything runs."""

import functools
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from smallbatch import config as configs
from smallbatch.config.batch_schedule import stages, used_tokens
from smallbatch.errors import UserError, did_you_mean
from smallbatch.grid.axes import LEARNING_RATE, Grid, Values

ID_LENGTH = 12
SHOWN_PROBLEMS = 8


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    id: str  # the first characters of the config's fingerprint
    values: Values  # of every swept key
    flat: dict[str, Any]  # {config key: value} of every key

    @functools.cached_property
    def config(self) -> configs.Config:
        """The complete config."""
        config = configs.base()
        for key, value in self.flat.items():
            section, _, name = key.partition(".")
            config[section][name] = value
        return config

    @property
    def name(self) -> str:
        """Return the swept values that are set, without their sections: batch_size=4 peak_lr=0.001."""
        return self.name_without()

    def name_without(self, *keys: str) -> str:
        """Return the name without some keys."""
        named = {key: value for key, value in self.values.items() if value is not None and key not in keys}
        return " ".join(f"{key.rpartition('.')[2]}={shown(value)}" for key, value in named.items())


def enumerate_cells(base: configs.Config, grid: Grid) -> list[Cell]:
    """Return the cells of a grid over a base config. Raises one UserError that lists every invalid cell."""
    keys, start = swept_keys(grid), configs.flatten(base.to_dict())
    problems: list[str] = []
    cells: dict[str, Cell] = {}
    for number, values in enumerate(grid, 1):
        try:
            flat = start | {key: _typed(key, value) for key, value in values.items()}
            configs.validate_flat(flat)
            flat = configs.resolved_flat(flat)
        except UserError as error:
            text = " ".join(f"{key}={shown(value)}" for key, value in values.items())
            problems.append(f"cell {number} ({text}): {error}")
            continue
        cell = Cell(configs.fingerprint_flat(flat)[:ID_LENGTH], {key: flat[key] for key in keys if key in flat}, flat)
        if cell.id in cells:
            mesh = " (mesh.* does not change a run; compare speeds with smallbatch.benchmark)"
            why = mesh if any(key.startswith("mesh.") for key in keys) else ""
            problems.append(f"cell {number} ({cell.name}) is the same run as another cell{why}; remove one")
        cells[cell.id] = cell
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        lines = problems[:SHOWN_PROBLEMS] + ([f"... and {more} more"] if more > 0 else [])
        raise UserError(f"the grid has {len(problems)} invalid cells:\n  " + "\n  ".join(lines))
    if not cells:
        raise UserError("the grid has no cells; get_grid() must return at least one")
    _check_equal_tokens(cells.values())
    return list(cells.values())


def _check_equal_tokens(cells: Iterable[Cell]) -> None:
    """Raise UserError if cells with the same budget would train on different numbers of tokens.

    A budget is rounded up to whole updates, whose size depends on the batch size.
    """
    groups: defaultdict[int, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.flat["train.budget_tokens"]].append(cell)
    for asked, group in groups.items():
        used, step_tokens = {}, []
        for cell in group:
            size, context = cell.flat["train.batch_size"], cell.flat["model.context_tokens"]
            found = stages(size, cell.flat["train.batch_size_schedule"], context, asked)
            used.setdefault(used_tokens(found, context), size)
            step_tokens += [stage.batch_size * context for stage in found]
        if len(used) > 1:
            unit = math.lcm(*step_tokens)
            lower = max(1, asked // unit) * unit
            budgets = ", ".join(f"{tokens:,} at batch size {size}" for tokens, size in sorted(used.items()))
            raise UserError(
                f"train.budget_tokens={asked:,}, rounded up to whole updates, gives different numbers of tokens: "
                f"{budgets}. All cells must train on the same number; use {lower:,} or {lower + unit:,}, a multiple "
                "of the tokens per update of every cell"
            )


def learning_rate_siblings(cells: list[Cell]) -> list[list[Cell]]:
    """Return the groups of two or more cells that differ only in the learning rate."""
    groups: defaultdict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[repr({key: value for key, value in cell.values.items() if key != LEARNING_RATE})].append(cell)
    return [group for group in groups.values() if len(group) > 1]


def swept_keys(grid: Grid) -> list[str]:
    """Return the keys that any cell sets, in order of appearance."""
    return list(dict.fromkeys(key for values in grid for key in values))


def selected(cells: list[Cell], only: Iterable[str]) -> list[Cell]:
    """Return the cells that match every KEY=VALUE; a key may be given without its section. Raises UserError."""
    for setting in only:
        name, equals, text = setting.partition("=")
        keys = list(cells[0].values)
        matching = [key for key in keys if name in (key, key.rpartition(".")[2])]
        if not equals or len(matching) != 1:
            meant = did_you_mean(name, keys) or f"; this grid sweeps {', '.join(keys)}"
            raise UserError(f"--only={setting} does not name a swept key; write KEY=VALUE{meant}")
        values = dict.fromkeys(shown(cell.values[matching[0]]) for cell in cells)
        cells = [cell for cell in cells if _matches(cell.values[matching[0]], text)]
        if not cells:
            raise UserError(f"--only={setting}: no cell has that value; there are {', '.join(values)}")
    return cells


def shown(value: Any) -> str:
    """Return a value as text for people."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _matches(value: Any, text: str) -> bool:
    try:
        return text in (str(value), shown(value)) or (isinstance(value, int | float) and float(text) == value)
    except ValueError:
        return False


def _typed(key: str, value: Any) -> Any:
    """Return a value as the type of its key: 1 as 1.0, or 4.0 as 4. Raises UserError if the key does not exist."""
    return configs.find(key).cast(value)
