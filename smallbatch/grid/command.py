"""What the sweep command says and does, once its flags have become cells."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smallbatch.config import Config
from smallbatch.data import prepare
from smallbatch.errors import UserError
from smallbatch.files import paths
from smallbatch.grid import cost
from smallbatch.grid import lane_engine as lanes
from smallbatch.grid import rungs as halving
from smallbatch.grid import status_table as board
from smallbatch.grid.axes import LEARNING_RATE, Grid
from smallbatch.grid.cells import Cell, enumerate_cells, rivals, selected
from smallbatch.grid.local_engine import LocalEngine, core_groups
from smallbatch.grid.options import Options
from smallbatch.grid.run import Sweep, check_prompts, failures, plan_cells, prepare_corpora, reopen, run
from smallbatch.grid.sweep_dir import State, SweepDirectory
from smallbatch.grid.tasks import Engine
from smallbatch.plan import mesh_plan as layout
from smallbatch.plan.plan import Plan
from smallbatch.runs.progress import log
from smallbatch.specs import DeviceSpec
from smallbatch.training.signals import EXIT_RESTART, Stop

SHOWN_CELLS = 40


def status_text(directory: SweepDirectory, only: Iterable[str] = ()) -> str:
    """Return how a sweep stands; reads its directory and nothing else, and writes nothing."""
    notes = []
    try:
        cells = directory.read_grid()
    except UserError as error:
        cells = directory.begun_cells()
        if not cells:
            raise
        notes = [f"{error}. The table shows only the {len(cells)} cells that were started."]
    cells = selected(cells, only)
    states = directory.states(cells)
    running = directory.claims.holders(time.time())
    return "\n".join([*notes, board.text(cells, states, running), *failures(directory, cells, states)])


def dry_run_text(directory: SweepDirectory, cells: list[Cell], chosen: list[Cell], flags) -> str:
    """Return the cells, by id and swept values, and what is left to run of them. Writes nothing."""
    directory.check_grid(cells)
    place = _place(directory, cells, chosen, flags)
    found = plan_cells(cells, place.devices)
    sweep = Sweep(directory, cells, chosen, found, flags.stop_diverged, flags.halving)
    states = directory.states(chosen)
    lines = [f"{cell.id}  {states[cell.id].status:<8}  {cell.name}" for cell in chosen[:SHOWN_CELLS]]
    if len(chosen) > SHOWN_CELLS:
        lines.append(f"... and {len(chosen) - SHOWN_CELLS:,} more")
    corpora = {spec: prepare.lookup(spec) for spec in {found[cell.id].data for cell in chosen}}
    known = {spec: len(dataset.train) for spec, dataset in corpora.items() if dataset is not None}
    if len(known) == len(corpora):
        lines += cost.beyond_corpus(chosen, found, known)
    else:
        lines.append("the corpus is not prepared yet: whether budgets repeat it is said at the start")
    lines += cost.warning_lines(found[cell.id] for cell in chosen)
    states = {id: State("missing") if state.status in sweep.reopened else state for id, state in states.items()}
    return "\n".join([*lines, _cost_text(sweep, states, place, place.engine(found), flags)])


def devices_of(cells: list[Cell]) -> int:
    """Return how many devices, or cores of a CPU, a cell gets: one, or what the largest mesh asks for."""
    meshes = [cell.config.mesh for cell in cells]
    return max(mesh.cpu_devices or layout.least_mesh(mesh).devices for mesh in meshes)


def sweep(
    config: Config, grid: Grid, path: str | Path, only: Iterable[str] = (), options: Options | None = None
) -> list[dict[str, Any]]:
    """Run a grid over a config, or go on with it, as the command does; return results.csv, a dict a cell.

    Raises:
        UserError: the grid, the data, the devices or the directory do not allow it.
        KeyboardInterrupt: by Ctrl-C, once the cells under way are saved.
    """
    directory = SweepDirectory(paths.local(path, "the sweep directory"))
    cells = enumerate_cells(config, grid)
    chosen = selected(cells, only)
    start(directory, directory.path.name, config, cells, chosen, options or Options())
    states = directory.states(cells)
    if missing := [cell for cell in chosen if states[cell.id].status == "missing"]:
        raise KeyboardInterrupt(f"stopped and saved with {len(missing):,} cells to run; the same call goes on")
    return directory.rows(cells, states)


def start(directory: SweepDirectory, name: str, config: Config, cells: list[Cell], chosen: list[Cell], flags) -> int:
    """Run the chosen cells; return the exit code: 1 if any failed, `signals.EXIT_RESTART` if a notice ended it."""
    directory.check_grid(cells)
    place = _place(directory, cells, chosen, flags)
    found = plan_cells(cells, place.devices)
    if place.name == "lanes":
        lanes.check(chosen, found)
        if words := lanes.left_out(chosen):
            log(words)
    corpus_tokens = prepare_corpora(found[cell.id] for cell in chosen)
    check_prompts(chosen, found)
    engine = place.engine(found)
    left = directory.write_grid(name, config, cells)  # after all checks, so that a usage error writes no grid
    if left:
        log(f"{left} cells of an earlier grid in {directory.path} are not in this one: kept, but not in results.csv")
    sweep = Sweep(directory, cells, chosen, found, flags.stop_diverged, flags.halving)
    reopen(sweep)
    for line in cost.beyond_corpus(chosen, found, corpus_tokens) + cost.warning_lines(found[c.id] for c in chosen):
        log(line)
    if flags.halving and (whole := halving.whole_groups(directory, chosen, found, flags.halving)):
        log(f"{whole} groups of learning rates have a cell that was run to its end before: --halving cuts none of them")
    log(_cost_text(sweep, directory.states(chosen), place, engine, flags))
    stop = Stop()
    states = run(replace(sweep, workers=_workers(place, engine)), engine, print, stop)
    print(f"results: {directory.results_csv}")
    chosen_states = [states[cell.id].status for cell in chosen]
    if "missing" in chosen_states:
        log(f"stopped with {chosen_states.count('missing'):,} cells to run; the same command goes on")
        if stop.notice is not None:
            return EXIT_RESTART
    return 1 if "failed" in chosen_states else 0


@dataclass(frozen=True)
class _Place:
    """Where cells run."""

    name: str  # local | lanes | ray
    devices: Callable[[Config], DeviceSpec]  # that the cell of a config gets
    engine: Callable[[dict[str, Plan]], Engine]  # given the plans of the whole grid


def _place(directory: SweepDirectory, cells: list[Cell], chosen: list[Cell], flags) -> _Place:
    """Return the engine that is asked for, or that suits this machine: lanes on an accelerator.

    Raises UserError for flags that would change nothing.
    """
    name, kind = (flags.engine, None) if flags.engine in ("local", "ray") else _here(flags.engine, cells)
    _refuse_idle_flags(name, cells, chosen, flags)
    wanted = devices_of(cells)
    if kind is not None and name == "lanes":
        kind = replace(kind, count=min(wanted, kind.count), lanes=True)
        engine = lambda plans: lanes.LaneEngine(directory, cells, plans, flags.lanes, flags.keep_checkpoints)
        return _Place(name, lambda config: kind, engine)
    if name == "ray":
        cluster = _ray_engine(directory, wanted, flags)
        kind = DeviceSpec(cluster.platform, wanted)
        return _Place(name, _cpu(wanted) if kind.platform == "cpu" else lambda config: kind, lambda plans: cluster)
    groups = core_groups(wanted, flags.workers)
    return _Place(name, _cpu(len(groups[0])), lambda plans: LocalEngine(directory, groups, flags.keep_checkpoints))


def _here(engine: str, cells: list[Cell]) -> tuple[str, DeviceSpec]:
    """Return the engine of this machine and the devices that JAX finds."""
    from smallbatch.training.jax_setup import cpu_cores, start_jax

    devices = start_jax(cpu_cores() if engine == "lanes" else 1, cells[0].config.data.cache_dir)
    return "local" if engine == "auto" and devices.platform == "cpu" else "lanes", devices


def _cpu(cores: int) -> Callable[[Config], DeviceSpec]:
    """Return what tells how many devices the cell of a config makes of a worker's cores."""
    return lambda config: DeviceSpec("cpu", layout.cpu_devices(config, cores))


def _refuse_idle_flags(engine: str, cells: list[Cell], chosen: list[Cell], flags) -> None:
    for name, its_engine in (("lanes", "lanes"), ("ray_address", "ray"), ("workers", "local")):
        if getattr(flags, name) is not None and engine != its_engine:
            raise UserError(f"--{name} is for --engine={its_engine}, and this sweep runs on {engine}; leave it out")
    if engine == "lanes" and flags.halving:
        raise UserError("--halving stops cells one by one, and lanes run together; use --engine=local")
    for name, among in (("halving", chosen), ("stop_diverged", cells)):
        if getattr(flags, name) and not rivals(among):
            raise UserError(
                f"--{name} compares cells that differ in {LEARNING_RATE} alone, and there are none; leave it out"
            )


def _ray_engine(directory: SweepDirectory, devices: int, flags):
    try:
        from smallbatch.grid.ray_engine import RayEngine
    except ImportError as error:
        raise UserError("--engine=ray needs Ray: pip install 'smallbatch[ray]'") from error
    return RayEngine(directory, flags.keep_checkpoints, devices, flags.ray_address)


def _workers(place: _Place, engine: Engine) -> int:
    """Return the factor by which parallel workers divide the time of a cell; 1 for lanes, which record their share."""
    return 1 if place.name == "lanes" else engine.size


def _cost_text(sweep: Sweep, states: dict[str, State], place: _Place, engine: Engine, flags) -> str:
    expected = cost.cost(
        sweep.chosen,
        sweep.plans,
        states,
        at_once=engine.size,
        workers=_workers(place, engine),
        keep_checkpoints=flags.keep_checkpoints,
    )
    return cost.cost_text(expected)
