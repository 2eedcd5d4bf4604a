"""Run or resume a grid of training runs. The config file defines get_grid() beside get_config().

Each batch size is compiled once, and runs are spread over cores, an accelerator, or a Ray cluster. Writes grid.json, a
run directory per cell, and results.csv. Several sweep commands can share a directory, and any can be stopped.
"""

import sys
from pathlib import Path

from absl import flags as absl_flags

from smallbatch.config import cli
from smallbatch.errors import UserError
from smallbatch.grid.tasks import Options


def define_flags(flags) -> None:
    default = Options()
    absl_flags.DEFINE_string(
        "workdir", None, "sweep directory, resumed with its own grid; unset: sweeps/CONFIG", flag_values=flags
    )
    absl_flags.DEFINE_boolean("dry_run", False, "print the cells and what they cost, then stop", flag_values=flags)
    absl_flags.DEFINE_boolean("status", False, "print how the sweep stands, from its files", flag_values=flags)
    absl_flags.DEFINE_list("only", [], "cells with KEY=VALUE[,KEY=VALUE] only", flag_values=flags)
    absl_flags.DEFINE_boolean(
        "stop_diverged", default.stop_diverged, "skip learning rates above one that diverged, all else equal",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_enum(
        "engine", default.engine, ["auto", "local", "lanes", "ray"],
        "local: a process a core; lanes: cells at once in one program; ray: the nodes of a Ray cluster",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_string(
        "ray_address", default.ray_address, "HOST:PORT of a Ray cluster; unset: the one this machine is part of",
        flag_values=flags,
    )  # fmt: skip
    cli.integer(flags, "lanes", default.lanes, "parallel cells of --engine=lanes; unset: measured", 1, 2**16)
    text = "processes of --engine=local; unset: limited by cores"
    cli.integer(flags, "workers", default.workers, text, 1, 4096)
    text = "continue only the best 1/N of the learning rates after budget/N^2 and budget/N"
    cli.integer(flags, "halving", default.halving, text, 2, 1024)
    absl_flags.DEFINE_boolean("keep_checkpoints", default.keep_checkpoints, "of cells that are done", flag_values=flags)


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
    if swept := cli.overridden_keys(sys.argv) & set(grid_cells.swept_keys(grid)):
        raise UserError(f"the grid sweeps {', '.join(sorted(swept))}; choose among its values with --only=KEY=VALUE")
    if not file:
        directory.check_config(config)
    cells = grid_cells.enumerate_cells(config, grid)
    chosen = grid_cells.selected(cells, flags.only)
    if flags.dry_run:
        print(command.dry_run_text(directory, cells, chosen, flags))
        return 0
    return command.start(directory, name, config, cells, chosen, flags)


if __name__ == "__main__":
    cli.run(main, define_flags, saved_config=saved_config)
