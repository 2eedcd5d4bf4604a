"""Train a GPT at any batch size, or go on with a run that was stopped.

Writes config.json, plan.json, metrics.jsonl, checkpoints and result.json to a run directory. A finished run is not
run again.
"""

from absl import flags as absl_flags

from smallbatch.config import cli
from smallbatch.errors import UserError


def define_flags(flags) -> None:
    absl_flags.DEFINE_string(
        "workdir", None, "run directory, resumed with its own config; unset: runs/CONFIG-FINGERPRINT", flag_values=flags
    )
    absl_flags.DEFINE_boolean("dry_run", False, "print the plan and the memory it needs, then stop", flag_values=flags)
    absl_flags.DEFINE_string("topology", None, "with --dry_run: a TPU slice that is not here, such as v5e:2x4",
                             flag_values=flags)  # fmt: skip
    absl_flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of process 0, for a run in several processes; unset: as Slurm, a TPU "
        "slice or Kubernetes have it", flag_values=flags,
    )  # fmt: skip
    cli.integer(flags, "process_count", None, "number of processes", 1, 2**20)
    cli.integer(flags, "process_id", None, "index of this process, from 0", 0, 2**20 - 1)
    cli.number(flags, "join_secs", 60.0, "seconds to wait for all processes at the start", 1.0, 86_400.0)


def saved_config(flags):
    """Return the config of the run in --workdir; None if there is no run."""
    from smallbatch.config import files as config_files
    from smallbatch.files import paths
    from smallbatch.runs.run_dir import RunDir

    saved = RunDir(paths.local(flags.workdir, "--workdir")).config if flags.workdir else None
    return config_files.load_saved(saved) if saved and paths.exists(saved) else None


def main(config, flags) -> int:
    from smallbatch.files import paths
    from smallbatch.runs import run_dir as workdirs
    from smallbatch.runs import summary

    if flags.topology and not flags.dry_run:
        raise UserError("--topology is for --dry_run: there is nothing to train on")
    path = paths.local(flags.workdir, "--workdir") if flags.workdir else workdirs.default_path(config, flags.config)
    workdir = workdirs.RunDir(path)
    workdirs.check_owner(workdir, config)
    if flags.dry_run:
        paths.check_writable(path, "choose another --workdir")
    if (result := workdirs.finished(workdir)) is not None and not flags.dry_run:
        print(
            "this run is finished; --config.train.seed=N or another --workdir starts a new one (another mesh does not)"
        )
        print(summary.result_text(result, path))
        return 0

    from smallbatch.training import distributed, run
    from smallbatch.training.signals import EXIT_RESTART

    def train() -> int:
        distributed.initialize(flags.coordinator_address, flags.process_count, flags.process_id, flags.join_secs)
        notice = False
        if flags.dry_run:
            text = summary.dry_run_text(run.dry_run(config, flags.topology))
        else:
            try:
                result = run.train(config, path)
            except run.Interrupted as stop:
                result, notice = stop.result, stop.noticed and stop.result.status == "stopped"
            text = summary.result_text(result, path)
        if distributed.is_first():
            print(text)
        return EXIT_RESTART if notice else 0

    return distributed.exit_on_error(train)


if __name__ == "__main__":
    cli.run(main, define_flags, saved_config=saved_config)
