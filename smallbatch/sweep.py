"""Run or resume a grid of training runs. The config file defines get_grid() beside get_config().

Each batch size is compiled once, and runs are spread over the cores, the devices, or a Ray cluster. Writes grid.json, a
run directory per cell, and results.csv. Several sweep commands can share a directory, and any can be stopped.
"""

import sys
from pathlib import Path

from absl import flags as absl_flags

from smallbatch.config import cli
from smallbatch.errors import UserError
from smallbatch.grid.tasks import Options


def define_flags(flags) -> None:
    def text(name: str, default: str | None, meaning: str) -> None:
        absl_flags.DEFINE_string(name, default, meaning, flag_values=flags)

    def switch(name: str, default: bool, meaning: str) -> None:
        absl_flags.DEFINE_boolean(name, default, meaning, flag_values=flags)

    default = Options()
    text("workdir", None, "sweep directory; without --config, resume the grid in it; unset: sweeps/CONFIG")
    switch("dry_run", False, "print the cells and their cost, and exit")
    switch("status", False, "print the status of the sweep, and exit")
    absl_flags.DEFINE_list("only", [], "run only the cells with KEY=VALUE[,KEY=VALUE]", flag_values=flags)
    switch("stop_diverged", default.stop_diverged, "skip learning rates above one that diverged, all else equal")
    engines = "local: one process per core; lanes: parallel cells in one program; ray: the nodes of a Ray cluster"
    absl_flags.DEFINE_enum("engine", default.engine, ["auto", "local", "lanes", "ray"], engines, flag_values=flags)
    text("ray_address", default.ray_address, "HOST:PORT of a Ray cluster; unset: the cluster of this machine")
    cli.integer(flags, "lanes", default.lanes, "parallel cells of --engine=lanes; unset: measured", 1, 2**16)
    workers = "processes of --engine=local; unset: limited by the number of cores"
    cli.integer(flags, "workers", default.workers, workers, 1, 4096)
    halving = "continue only the best 1/N of the learning rates after budget/N^2 and budget/N"
    cli.integer(flags, "halving", default.halving, halving, 2, 1024)
    switch("keep_checkpoints", default.keep_checkpoints, "keep the checkpoints of cells that have ended")


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
        raise UserError(
            f"the grid sweeps {', '.join(sorted(swept))}, so --config cannot set it; select values with --only"
        )
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
