"""The launch scripts are clean shell, say what they were tried on, and print what they would do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import runs

LAUNCH = runs.ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def launch(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RAY_"))}
    return subprocess.run(
        [LAUNCH / script, *words], env=kept | environment, capture_output=True, text=True, timeout=60, cwd=runs.ROOT
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_executable_clean_and_says_what_it_was_tried_on(script):
    assert os.access(script, os.X_OK)
    found = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), str(script)], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stdout
    assert "# Tried: " in script.read_text()


def test_a_dry_run_on_slurm_starts_the_head_then_the_workers_then_the_sweep():
    done = launch("ray_slurm.sh", "--dry_run", "--config=a b.py", "--workdir=/shared/w")
    assert done.returncode == 0 and not done.stderr
    token, head, health, worker, sweep = done.stdout.splitlines()
    assert token.startswith("ray get-auth-token") and health.startswith("ray health-check --address=node1:6379")
    assert head.startswith("srun ") and "--nodelist=node1 " in head and "--head --port=6379" in head
    assert worker.startswith("srun ") and "--nodelist=node2 " in worker and "--address=node1:6379" in worker
    assert sweep.split(" ", 3)[:3] == ["python", "-m", "smallbatch.sweep"]
    assert "--engine=ray --ray_address=node1:6379 --config=a\\ b.py --workdir=/shared/w" in sweep


def test_on_slurm_a_script_that_is_no_job_is_refused():
    done = launch("ray_slurm.sh", "--config=a.py")
    assert done.returncode == 2 and "submit it with sbatch" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_dry_run_on_a_tpu_vm_installs_everywhere_and_sweeps_on_the_first_host():
    done = launch("ray_tpu_vm.sh", "--dry_run", "name", "zone-a", "--config=a.py")
    assert done.returncode == 0 and not done.stderr
    archive, copy, *commands = done.stdout.splitlines()
    assert archive.startswith("git archive ") and " scp " in copy and "--worker=all" in copy
    assert all(line.startswith("gcloud compute tpus tpu-vm ssh name --zone=zone-a ") for line in commands)
    install, head, others, sweep = commands
    assert "--worker=all" in install and "smallbatch[tpu,ray]" in install
    assert "--worker=0 " in head and "--head" in head
    assert "--worker=all " in others and "--address=HEAD_IP:6379" in others
    assert "--worker=0 " in sweep and "smallbatch.sweep" in sweep and "--config=a.py" in sweep


def test_a_tpu_vm_must_be_named():
    done = launch("ray_tpu_vm.sh", "--config=a.py")
    assert done.returncode == 2 and "NAME ZONE" in done.stderr and len(done.stderr.splitlines()) == 1
