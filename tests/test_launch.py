"""Launch scripts: shellcheck, dry runs, and whole runs with stand-ins for gcloud and Slurm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import runs

pytestmark = pytest.mark.slow

LAUNCH = runs.ROOT / "launch"
TPU_VM = ["name", "zone-a", "v6e-16", "--spot", "--", "train", "--config=a b.py", "--workdir=/mnt/w"]

# Stands in for a TPU VM that is preempted in the first command that contains $LOST_IN, with exit code $LOST_WITH.
GCLOUD = """#!/usr/bin/env bash
echo "$*" >>log
case "$*" in
  *"$LOST_IN"*) if [[ ! -e taken ]]; then touch taken; echo PREEMPTED >state; exit "$LOST_WITH"; fi ;;
  *" create "*) echo WAITING_FOR_RESOURCES >state ;;
  *" delete "*) rm state ;;
  *" describe "*)
    if [[ ! -e state ]]; then echo "ERROR: NOT_FOUND" >&2; exit 1; fi
    cat state
    if [[ $(<state) == WAITING_FOR_RESOURCES ]]; then echo READY >state; fi ;;
esac
"""
# srun signals the time limit to the job, and succeeds when scancel is called.
SRUN = """#!/usr/bin/env bash
echo "srun $*" >>log
if [[ -e in_time ]]; then exit "$(<in_time)"; fi
kill -USR1 $PPID
for _ in {1..500}; do if grep -q ^scancel log; then exit 0; fi; sleep 0.01; done
exit 9
"""
RECORDED = """#!/usr/bin/env bash
echo "${0##*/} $*" >>log
if [[ $1 == show ]]; then cat preempted; fi
"""
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def launch(script: str, *words: str, cwd: Path = runs.ROOT, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RAY_"))}
    return subprocess.run(
        [LAUNCH / script, *words],
        env=kept | {"LC_ALL": "C"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
    )


def play(directory: Path, script: str, *words: str, stand_ins: dict[str, str], **environment: str):
    """Run a script with stand-ins for commands; return its result and the logged calls."""
    for name, text in stand_ins.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    path = f"{directory}:{os.environ['PATH']}"
    done = launch(script, *words, cwd=directory, PATH=path, **environment)
    return done, (directory / "log").read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_passes_shellcheck_and_lists_what_was_tested(script):
    assert os.access(script, os.X_OK)
    found = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "-x", str(script)], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stdout
    assert "# Tested: " in script.read_text()


def test_ray_slurm_dry_run_starts_head_workers_and_sweep():
    done = launch("ray_slurm.sh", "--dry_run", "--config=a b.py", "--workdir=/shared/w")
    assert done.returncode == 0 and not done.stderr
    token, head, health, worker, sweep = done.stdout.splitlines()
    assert token.startswith("ray get-auth-token") and health.startswith("ray health-check --address=node1:6379")
    assert head.startswith("srun ") and "--nodelist=node1 " in head and "--head --port=6379" in head
    assert worker.startswith("srun ") and "--nodelist=node2 " in worker and "--address=node1:6379" in worker
    assert sweep.split(" ", 3)[:3] == ["python", "-m", "smallbatch.sweep"]
    assert "--engine=ray --ray_address=node1:6379 --config=a\\ b.py --workdir=/shared/w" in sweep


def test_ray_slurm_outside_a_job_is_an_error():
    done = launch("ray_slurm.sh", "--config=a.py")
    assert done.returncode == 2 and "submit it with sbatch" in done.stderr and len(done.stderr.splitlines()) == 1


def test_ray_tpu_vm_dry_run_installs_on_all_hosts_and_sweeps_on_the_first():
    done = launch("ray_tpu_vm.sh", "--dry_run", "name", "zone-a", "--config=a.py")
    assert done.returncode == 0 and not done.stderr
    archive, copy, *commands = done.stdout.splitlines()
    assert archive.startswith("git archive ") and " scp " in copy and "--worker=all" in copy
    assert all(line.startswith("gcloud compute tpus tpu-vm ssh name --zone=zone-a ") for line in commands)
    install, token, head, others, sweep = commands
    assert "--worker=all" in token and "auth_token" in token
    assert "--worker=all" in install and "smallbatch[tpu,ray]" in install
    assert "--worker=0 " in head and "--head" in head
    assert "--worker=all " in others and "--address=HEAD_IP:6379" in others
    assert "--worker=0 " in sweep and "smallbatch.sweep" in sweep and "--config=a.py" in sweep


def test_ray_tpu_vm_without_a_name_is_an_error():
    done = launch("ray_tpu_vm.sh", "--config=a.py")
    assert done.returncode == 2 and "NAME or ZONE" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "script", [script for script in SCRIPTS if script.name != "tpu_hosts.sh"], ids=lambda s: s.name
)
def test_help_prints_the_header(script):
    done = launch(script.name, "--help")
    assert done.returncode == 0 and not done.stderr
    assert script.name in done.stdout and "--dry_run" in done.stdout and "Tested: " in done.stdout
    assert "SBATCH" not in done.stdout and "pipefail" not in done.stdout


def test_tpu_vm_dry_run_creates_installs_and_runs_on_all_hosts():
    done = launch("tpu_vm.sh", "--dry_run", "--setup=mount x", *TPU_VM)
    assert done.returncode == 0 and not done.stderr
    create, setup, archive, copy, install, run, comment, delete = done.stdout.splitlines()
    assert "queued-resources create name --node-id=name --zone=zone-a --accelerator-type=v6e-16 --spot" in create
    assert "--runtime-version=v2-alpha-tpuv6e" in create and "mount" in setup
    assert archive.startswith("git archive ") and " scp " in copy and "smallbatch[tpu]" in install
    assert all("--worker=all" in line for line in (setup, copy, install, run))
    assert "python -m smallbatch.train --config=a\\\\ b.py --workdir=/mnt/w" in run
    assert "after a preemption" in comment and "queued-resources delete name " in delete and "--force" in delete


@pytest.mark.parametrize(
    ("code", "where"),
    [
        ("0", "smallbatch.train"),
        ("1", "smallbatch.train"),
        ("137", "smallbatch.train"),
        ("255", "smallbatch.train"),
        ("2", "smallbatch[tpu]"),
    ],
    ids=["run saved", "another process ended", "killed", "connection broke", "pip failed"],
)
def test_preempted_tpu_vm_is_created_again_and_the_command_rerun(tmp_path, code, where):
    stand_ins = {"gcloud": GCLOUD, "git": "#!/bin/sh\n"}
    settings = {"POLL_SECS": "0.01", "LOST_WITH": code, "LOST_IN": where}
    done, called = play(tmp_path, "tpu_vm.sh", "--delete_when_done", *TPU_VM, stand_ins=stand_ins, **settings)
    assert done.returncode == 0, done.stderr
    steps = [" create ", " scp ", "smallbatch[tpu]", "smallbatch.train", " delete "]
    before_the_loss = steps[: steps.index(where) + 1]
    assert [step for line in called for step in steps if step in line] == [*before_the_loss, " delete ", *steps]
    assert len({line for line in called if "smallbatch.train" in line}) == 1
    assert "name: PREEMPTED" in done.stderr


@pytest.mark.parametrize(("codes", "code"), [((75, 75, 0), 0), ((75, 2), 2), ((0,), 0)])
def test_command_restarts_on_its_host_after_a_preemption_notice(tmp_path, codes, code):
    """The host's command runs here, with a stand-in for Python."""
    done = launch("tpu_vm.sh", "--dry_run", *TPU_VM)
    gcloud = 'gcloud() { for word; do case $word in --command=*) printf %s "${word#*=}" ;; esac; done; }; '
    line = next(line for line in done.stdout.splitlines() if "smallbatch.train" in line)
    run = subprocess.run(["bash", "-c", gcloud + line], capture_output=True, text=True, timeout=60).stdout
    host = tmp_path / "smallbatch" / ".venv" / "bin"
    host.mkdir(parents=True)
    (host / "activate").write_text(
        f"""pkill() {{ :; }}
pgrep() {{ false; }}
codes=({" ".join(map(str, codes))})
python() {{ echo "$@" >>log; return "${{codes[$(($(wc -l <log) - 1))]}}"; }}
"""
    )
    at_once = run.replace("sleep 1; done", ":; done")
    ended = subprocess.run(["bash", "-c", at_once], cwd=tmp_path, timeout=60)
    called = (tmp_path / "smallbatch" / "log").read_text().splitlines()
    assert ended.returncode == code and called == ["-m smallbatch.train --config=a b.py --workdir=/mnt/w"] * len(codes)


@pytest.mark.parametrize(
    ("code", "problem"), [(1, "still exists"), (2, "usage error"), (137, "still exists"), (255, "still exists")]
)
def test_failed_command_is_not_rerun_while_the_tpu_vm_exists(tmp_path, code, problem):
    fails = f"""#!/usr/bin/env bash
echo "$*" >>log
case "$*" in *describe*) echo READY ;; *smallbatch.train*) exit {code} ;; esac
"""
    done, called = play(
        tmp_path, "tpu_vm.sh", *TPU_VM, stand_ins={"gcloud": fails, "git": "#!/bin/sh\n"}, POLL_SECS="0.01"
    )
    assert done.returncode == code and sum("smallbatch.train" in line for line in called) == 1
    assert not any(word in line for line in called for word in (" create ", " delete "))
    assert (" describe " in called[-1]) == (code != 2)  # a usage error fails on any TPU VM, so its state is not queried
    assert problem in done.stderr
    assert "queued-resources delete name" in done.stderr  # the TPU VM still exists and costs money


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["name"], "NAME, ZONE or TYPE"),
        (["name", "zone-a", "v6e-16", "--spot"], "after --"),
        (["name", "zone-a", "v6e-16", "--", "train", "--config=a.py"], "--workdir"),
        (["--spot", "name"], "no option --spot"),
    ],
)
def test_tpu_vm_usage_error_is_one_line(words, problem):
    done = launch("tpu_vm.sh", *words)
    assert done.returncode == 2 and problem in done.stderr and len(done.stderr.splitlines()) == 1


def test_slurm_dry_run_prints_step_save_and_requeue():
    done = launch("slurm.sh", "--dry_run", "train", "--config=a b.py", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2")
    assert done.returncode == 0 and not done.stderr
    step, save, requeue = done.stdout.splitlines()
    assert step.strip() == r"srun --kill-on-bad-exit=1 python -m smallbatch.train --config=a\ b.py"
    assert "scancel --signal=TERM 7_2" in save and "scontrol requeue 7_2" in requeue


@pytest.mark.parametrize(
    ("in_time", "preempted", "code", "requeued"),
    [
        (None, "None", 0, True),
        ("0", "None", 0, False),
        ("1", "None", 1, False),
        ("2", "None", 2, False),
        ("0", "2026-01-01T00:00:00", 0, True),
        ("75", "None", 75, True),
    ],
    ids=["time limit", "ends in time", "fails", "usage error", "preempted", "preemption notice"],
)
def test_slurm_job_is_requeued_only_after_it_was_stopped(tmp_path, in_time, preempted, code, requeued):
    if in_time is not None:
        (tmp_path / "in_time").write_text(in_time)
    (tmp_path / "preempted").write_text(f"PreemptTime={preempted}\n")
    done, called = play(
        tmp_path, "slurm.sh", "sweep", "--workdir=w", SLURM_JOB_ID="9",
        stand_ins={"srun": SRUN, "scancel": RECORDED, "scontrol": RECORDED},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert called[0] == "srun --kill-on-bad-exit=1 python -m smallbatch.sweep --workdir=w"
    assert ("scancel --signal=TERM 9" in called) == (in_time is None)
    assert ("scontrol requeue 9" in called) == requeued
    assert ("run sbatch again to resume" in done.stderr) == (code == 1)


@pytest.mark.parametrize(
    ("words", "environment", "problem"),
    [
        ([], {"SLURM_JOB_ID": "9"}, "the command is missing"),
        (["train"], {}, "submit it with sbatch"),
        (
            ["train"],
            {"SLURM_JOB_ID": "9", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_GPUS_ON_NODE": "8"},
            "--ntasks-per-node",
        ),
    ],
)
def test_slurm_usage_error_is_one_line(words, environment, problem):
    done = launch("slurm.sh", *words, **environment)
    assert done.returncode == 2 and problem in done.stderr and len(done.stderr.splitlines()) == 1


def test_container_copies_the_files_that_it_runs():
    text = (LAUNCH / "Containerfile").read_text()
    assert "# Tested: " in text and "\nUSER 1000\n" in text
    copied = [word for line in text.splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert all((runs.ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", "smallbatch", "configs"} <= set(copied)
    assert 'ENTRYPOINT ["python", "-m", "smallbatch.train"]' in text
