"""Run or resume a grid of training runs. The config file defines get_grid() beside get_config().

Each batch size is compiled once. Runs are distributed over CPU cores, an accelerator, or a Ray cluster. Writes
grid.json, a run directory per cell, and results.csv. Several sweep commands can share a directory, and each can be
stopped and resumed.
"""

from pathlib import Path

from smallbatch.config import cli
from smallbatch.config.key_types import Interval, Key
from smallbatch.errors import UserError
from smallbatch.grid.tasks import Options

ENGINE = "local: one process per core; lanes: several cells in one program; ray: the nodes of a Ray cluster"
HALVING = "continue only the best 1/N of the learning rates after budget/N^2 and after budget/N"
DEFAULT = Options()
FLAGS = (
    Key("--workdir", None, str, "sweep directory; an existing sweep resumes with its own grid; unset: sweeps/CONFIG"),
    Key("--dry_run", False, bool, "print the cells and their cost, then exit"),
    Key("--status", False, bool, "print the status of the sweep from its files, then exit"),
    Key("--only", (), str, "run only cells with KEY=VALUE[,KEY=VALUE]"),
    Key("--stop_diverged", DEFAULT.stop_diverged, bool, "skip learning rates above one that diverged, all else equal"),
    Key("--engine", DEFAULT.engine, str, ENGINE, ("auto", "local", "lanes", "ray")),
    Key("--ray_address", DEFAULT.ray_address, str, "HOST:PORT of a Ray cluster; unset: the cluster of this machine"),
    Key("--lanes", DEFAULT.lanes, int, "cells per program of --engine=lanes; unset: measured", Interval(1, 2**16)),
    Key("--workers", DEFAULT.workers, int, "processes of --engine=local; unset: as cores allow", Interval(1, 4096)),
    Key("--halving", DEFAULT.halving, int, HALVING, Interval(2, 1024)),
    Key("--keep_checkpoints", DEFAULT.keep_checkpoints, bool, "keep the checkpoints of finished cells"),
)


def saved_config(flags):
    """Return the config of the first cell of the sweep in --workdir; None if there is no sweep."""
    from smallbatch.files import paths
    from smallbatch.grid.sweep_dir import SweepDirectory

    directory = SweepDirectory(paths.local(flags.workdir, "--workdir")) if flags.workdir else None
    return directory.read_grid()[0].config if directory and paths.exists(directory.grid_json) else None


def main(config, flags) -> int:
    from smallbatch.config import files as config_files
    from smallbatch.files import paths
    from smallbatch.grid import cells as grid_cells
    from smallbatch.grid import command
    from smallbatch.grid.sweep_dir import SweepDirectory

    file = flags.config or ""
    if not file and not flags.workdir:
        raise UserError("no grid is given; use --config=configs/quickstart_grid.py, or another file with a get_grid()")
    name = file.rpartition("/")[2].replace(".py", "").replace(":", "-")
    directory = SweepDirectory(paths.local(flags.workdir, "--workdir") if flags.workdir else Path("sweeps") / name)
    if flags.status:
        print(command.status_text(directory, flags.only))
        return 0
    if file:
        grid = config_files.load_grid(file)
    else:
        name, grid = directory.saved_grid()
    if swept := set(flags.overrides) & set(grid_cells.swept_keys(grid)):
        raise UserError(f"the grid sweeps {', '.join(sorted(swept))}; select among its values with --only=KEY=VALUE")
    if not file:
        directory.check_config(config)
    cells = grid_cells.enumerate_cells(config, grid)
    chosen = grid_cells.selected(cells, flags.only)
    if flags.dry_run:
        print(command.dry_run_text(directory, cells, chosen, flags))
        return 0
    return command.start(directory, name, config, cells, chosen, flags)


if __name__ == "__main__":
    cli.run(main, FLAGS, saved_config=saved_config)
