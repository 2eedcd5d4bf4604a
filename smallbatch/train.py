"""Train a GPT at any batch size, or resume a stopped run.

Writes config.json, plan.json, metrics.jsonl, checkpoints and result.json to a run directory. For a finished run, it
only prints the result.
"""

from smallbatch.config import cli
from smallbatch.config.key_types import Interval, Key
from smallbatch.errors import UserError

FLAGS = (
    Key("--workdir", None, str, "run directory, which is resumed with its own config; unset: runs/CONFIG-FINGERPRINT"),
    Key("--dry_run", False, bool, "print the plan and the memory it needs, then exit"),
    Key("--topology", None, str, "with --dry_run: TPU slice to plan for, such as v5e:2x4; needs no TPU"),
    Key("--coordinator_address", None, str, "HOST:PORT of process 0; unset: from Slurm, Open MPI or a TPU slice"),
    Key("--process_count", None, int, "number of processes", Interval(1, 2**20)),
    Key("--process_id", None, int, "index of this process, from 0", Interval(0, 2**20, "[)")),
    Key("--join_secs", 60.0, float, "seconds to wait for all processes at the start", Interval(1, 86_400)),
)


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
        raise UserError(f"--topology={flags.topology} needs --dry_run; add it, or remove --topology to train")
    path = paths.local(flags.workdir, "--workdir") if flags.workdir else workdirs.default_path(config, flags.config)
    workdir = workdirs.RunDir(path)
    workdirs.check_owner(workdir, config)
    if flags.dry_run:
        paths.check_writable(path, "choose another --workdir")
    if (result := workdirs.finished(workdir)) is not None and not flags.dry_run:
        print("this run is finished; start another with --config.train.seed=N or another --workdir")
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
    cli.run(main, FLAGS, saved_config=saved_config)
