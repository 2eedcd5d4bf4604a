"""The sweep command: choose an engine, print the cost or the status of a grid, and run it."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from smallbatch.config import Config
from smallbatch.data import prepare
from smallbatch.errors import UserError
from smallbatch.files import paths
from smallbatch.grid import cost
from smallbatch.grid import lane_engine as lanes
from smallbatch.grid.axes import LEARNING_RATE, Grid
from smallbatch.grid.cells import Cell, enumerate_cells, learning_rate_siblings, selected
from smallbatch.grid.local_engine import LocalEngine, core_groups
from smallbatch.grid.run import run
from smallbatch.grid.status_table import status_lines
from smallbatch.grid.sweep_dir import State, SweepDirectory
from smallbatch.grid.sweep_plan import SweepPlan, plan_cells, prepare_corpora
from smallbatch.grid.tasks import Engine, Options
from smallbatch.plan import mesh_plan
from smallbatch.runs.progress import log
from smallbatch.specs import DeviceSpec
from smallbatch.training.signals import EXIT_RESTART, Stop

SHOWN_CELLS = 40


def status_text(directory: SweepDirectory, only: Iterable[str] = ()) -> str:
    """Return the status of a sweep, read from its directory. Writes nothing."""
    cells = selected(directory.read_grid(), only)
    states = directory.states(cells)
    return "\n".join(status_lines(directory, cells, states, directory.locks.holders(time.time())))


def dry_run_text(directory: SweepDirectory, cells: list[Cell], chosen: list[Cell], flags) -> str:
    """Return the ids, statuses and swept values of the cells, and the cost of those to run. Writes nothing."""
    directory.check_grid(cells)
    sweep, engine = _plan(directory, cells, chosen, flags)
    states = directory.states(chosen)
    lines = [f"{cell.id}  {states[cell.id].status:<8}  {cell.name}" for cell in chosen[:SHOWN_CELLS]]
    if len(chosen) > SHOWN_CELLS:
        lines.append(f"... and {len(chosen) - SHOWN_CELLS:,} more")
    datasets = {spec: prepare.lookup(spec) for spec in {sweep.plans[cell.id].data for cell in chosen}}
    known = {spec: len(dataset.train) for spec, dataset in datasets.items() if dataset is not None}
    if len(known) < len(datasets):
        lines.append("the corpus is not prepared yet, so the number of epochs is unknown")
    states = {id: State("missing") if state.status in sweep.reopened else state for id, state in states.items()}
    return "\n".join(lines + _cost_lines(sweep, engine, states, known, flags))


def sweep(
    config: Config, grid: Grid, path: str | Path, only: Iterable[str] = (), options: Options | None = None
) -> list[dict[str, Any]]:
    """Run or resume a grid over a config, as the command does; return the rows of results.csv, one dict per cell.

    Raises:
        UserError: the grid, data, devices or directory are invalid.
        KeyboardInterrupt: the sweep was stopped by Ctrl-C, and the running cells are saved.
    """
    directory = SweepDirectory(paths.local(path, "the sweep directory"))
    cells = enumerate_cells(config, grid)
    chosen = selected(cells, only)
    start(directory, directory.path.name, config, cells, chosen, options or Options())
    states = directory.states(cells)
    if missing := [cell for cell in chosen if states[cell.id].status == "missing"]:
        raise KeyboardInterrupt(f"stopped and saved with {len(missing):,} cells to run; call it again to resume")
    return directory.rows(cells, states)


def start(directory: SweepDirectory, name: str, config: Config, cells: list[Cell], chosen: list[Cell], flags) -> int:
    """Run the chosen cells; return the exit code: 1 if any failed, `signals.EXIT_RESTART` after a preemption notice."""
    directory.check_grid(cells)
    sweep, engine = _plan(directory, cells, chosen, flags)
    if isinstance(engine, lanes.LaneEngine):
        lanes.check(chosen, sweep.plans)
        if warning := lanes.left_out(chosen):
            log(warning)
    corpus_tokens = prepare_corpora(chosen, sweep.plans)
    left = directory.write_grid(name, config, cells)  # after all checks, so that a usage error writes no grid
    if left:
        log(f"{left} cells of an earlier grid in {directory.path} are not in this one: kept, but not in results.csv")
    sweep.reopen()
    log("\n".join(_cost_lines(sweep, engine, directory.states(chosen), corpus_tokens, flags)))
    stop = Stop()
    states = run(sweep, engine, print, stop)
    print(f"results: {directory.results_csv}")
    statuses = [states[cell.id].status for cell in chosen]
    if "missing" in statuses:
        log(f"stopped with {statuses.count('missing'):,} cells to run; rerun the same command to resume")
        if stop.notice is not None:
            return EXIT_RESTART
    return 1 if "failed" in statuses else 0


def _plan(directory: SweepDirectory, cells: list[Cell], chosen: list[Cell], flags) -> tuple[SweepPlan, Engine]:
    """Return the plans of all cells and the engine: the one in `flags`, or by default lanes on an accelerator.

    Raises UserError for flags that the engine or the grid does not use.
    """
    name, devices = flags.engine, None
    if name in ("auto", "lanes"):
        from smallbatch.training.jax_setup import cpu_cores, start_jax

        devices = start_jax(cpu_cores() if name == "lanes" else 1, cells[0].config.data.cache_dir)
        name = "local" if name == "auto" and devices.platform == "cpu" else "lanes"
    _check_flags(name, cells, chosen, flags)
    meshes = [cell.config.mesh for cell in cells]
    # Devices, or CPU cores, per cell: enough for the largest mesh.
    count = max(mesh.cpu_devices or mesh_plan.least_mesh(mesh).devices for mesh in meshes)
    keep, workers = flags.keep_checkpoints, 1
    if name == "lanes":
        assert devices is not None
        one = replace(devices, count=min(count, devices.count), lanes=True)
        plans = plan_cells(cells, lambda config: one)
        engine: Engine = lanes.LaneEngine(directory, cells, plans, flags.lanes, keep)
    else:
        if name == "ray":
            engine = _ray_engine(directory, count, flags)
            platform, cores = engine.platform, count
        else:
            groups = core_groups(count, flags.workers)
            engine, platform, cores = LocalEngine(directory, groups, keep), "cpu", len(groups[0])

        def devices_of(config: Config) -> DeviceSpec:
            return DeviceSpec(platform, mesh_plan.cpu_devices(config, cores) if platform == "cpu" else count)

        plans = plan_cells(cells, devices_of)
        workers = engine.size  # the seconds of lanes are already divided
    return SweepPlan(directory, cells, chosen, plans, flags.stop_diverged, flags.halving, workers), engine


def _ray_engine(directory: SweepDirectory, devices: int, flags):
    try:
        from smallbatch.grid.ray_engine import RayEngine
    except ImportError as error:
        raise UserError("--engine=ray needs Ray, which is not installed; run pip install 'smallbatch[ray]'") from error
    return RayEngine(directory, flags.keep_checkpoints, devices, flags.ray_address)


def _check_flags(engine: str, cells: list[Cell], chosen: list[Cell], flags) -> None:
    for name, its_engine in (("lanes", "lanes"), ("ray_address", "ray"), ("workers", "local")):
        if getattr(flags, name) is not None and engine != its_engine:
            raise UserError(f"--{name} is for --engine={its_engine}, and this sweep uses {engine}; omit the flag")
    if engine == "lanes" and flags.halving:
        raise UserError("--halving stops cells one by one, and lanes train together; use --engine=local")
    for name, among in (("halving", chosen), ("stop_diverged", cells)):
        if getattr(flags, name) and not learning_rate_siblings(among):
            raise UserError(
                f"--{name} compares cells that differ only in {LEARNING_RATE}, and there are none; omit the flag"
            )


def _cost_lines(sweep: SweepPlan, engine: Engine, states: dict[str, State], corpus_tokens: dict, flags) -> list[str]:
    """Return the epochs, the warnings and the cost of the chosen cells. corpus_tokens: {DataSpec: training tokens}."""
    plans = [sweep.plans[cell.id] for cell in sweep.chosen]
    known = [plan for plan in plans if plan.data in corpus_tokens]
    text = cost.cost_text(sweep, states, engine.size, flags.keep_checkpoints)
    return [*cost.epoch_lines(known, corpus_tokens), *cost.warning_lines(plans), text]
