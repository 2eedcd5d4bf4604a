"""One run in two and four real processes: the same numbers, lost processes, stops and errors."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import runs
import test_cloud
from data_specs import sentences

from smallbatch.errors import UserError
from smallbatch.training import distributed, run
from smallbatch.training.program import train_program

pytestmark = pytest.mark.slow

home = runs.home

CHANGES = runs.LONG | {
    "train.budget_tokens": 5120,  # 40 updates
    "train.batch_size": 4,
    "train.validate_every_tokens": None,
    "train.checkpoint_every_secs": 0.3,
    "mesh.data": None,
    "mesh.cpu_devices": 1,
}


def free_port() -> int:
    """Return a free port among those that JAX uses in Slurm jobs."""
    for port in np.random.default_rng().permutation(np.arange(61440, 65536)):
        with contextlib.suppress(OSError), socket.create_server(("", int(port))):
            return int(port)
    raise AssertionError("no port is free")


@pytest.fixture
def no_launcher(monkeypatch):
    """Remove the environment variables of Slurm, MPI and TPU slices."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "GCE_"))]:
        monkeypatch.delenv(name)


def start_all(
    home: Path, path: Path, processes: int, *more: str, changes=CHANGES, missing=()
) -> list[subprocess.Popen]:
    port = free_port()
    common = [f"--coordinator_address=127.0.0.1:{port}", f"--process_count={processes}", *more]
    indices = [i for i in range(processes) if i not in missing]
    return [runs.start(home, changes, path, *common, f"--process_id={i}") for i in indices]


def ended(processes: list[subprocess.Popen], secs: float = 600.0) -> list[tuple[int, str, str]]:
    """Return (exit code, stdout, stderr) of every process."""
    found = [process.communicate(timeout=secs) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def assert_same_losses(path: Path, reference: Path) -> None:
    """Assert equality up to the order of sums, which depends on the number of devices."""
    ours, theirs = runs.numbers(path), runs.numbers(reference)
    assert [r["step"] for r in ours] == [r["step"] for r in theirs]
    np.testing.assert_allclose([r["loss_nats"] for r in ours], [r["loss_nats"] for r in theirs], rtol=2e-5)


@pytest.fixture(scope="module")
def alone(home, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("alone") / "run"
    done = runs.command(home, CHANGES, path)
    assert done.returncode == 0, done.stderr
    return path


def test_four_processes_of_slurm_train_as_one_and_only_the_first_prints(home, alone, tmp_path):
    job = {"SLURM_JOB_ID": str(free_port() - 61440), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "4"}
    task = lambda i: ("env", *(f"{k}={v}" for k, v in (job | {"SLURM_PROCID": i, "SLURM_LOCALID": i}).items()))
    processes = [runs.start(home, CHANGES, tmp_path / "run", prefix=task(i)) for i in range(4)]
    first, *others = ended(processes)
    assert first[0] == 0, first[2]
    assert "status      done" in first[1] and "batch 4 x 32 tokens" in first[2]
    assert "4 cpu devices in 4 processes" in first[2]
    for code, out, err in others:
        printed = [line for line in out.splitlines() if not line.startswith("[Gloo]")]
        assert code == 0 and not printed and "train" not in err
    assert_same_losses(tmp_path / "run", alone)
    ours, theirs = runs.result_of(tmp_path / "run"), runs.result_of(alone)
    assert ours["validation_loss_nats"] == pytest.approx(theirs["validation_loss_nats"], rel=2e-5)
    assert ours["sample"] == theirs["sample"]


def test_run_resumes_with_another_number_of_processes_after_a_loss_and_a_stop(home, alone, tmp_path):
    path = tmp_path / "run"
    saved = lambda beyond: lambda: any(step > beyond for step in runs.steps_saved(path))
    # Each save waits for the previous one, so the run cannot end before a save is noticed.
    changes = CHANGES | {"train.checkpoint_every_secs": 0.0}
    processes = start_all(home, path, 2, changes=changes)
    assert runs.wait_until(processes[0], saved(0))
    processes[1].kill()
    (code, _, err), _ = ended(processes, secs=2 * distributed.HEARTBEAT_SECS + 30)
    assert code not in (0, 2, None) and not (path / "result.json").exists()  # 2 means a usage error
    assert "another process of this run has ended" in err or "heartbeat timeout" in err

    before = max(runs.steps_saved(path))
    processes = start_all(home, path, 4, changes=changes)
    assert runs.wait_until(processes[0], saved(before))
    processes[3].send_signal(signal.SIGTERM)  # one is enough
    for code, _, err in ended(processes):
        assert code == 0, err
    assert runs.result_of(path)["status"] == "stopped" and max(runs.steps_saved(path)) < 40

    done = runs.command(home, CHANGES, path)
    assert done.returncode == 0 and "resuming after update" in done.stderr
    assert_same_losses(path, alone)


def test_stop_before_the_first_update_saves(home, tmp_path):
    """JAX installs its own handler of SIGTERM when it connects processes."""
    processes = start_all(home, tmp_path / "run", 2)
    first = processes[0].stderr
    assert first is not None and any("compiling" in line for line in first)
    processes[1].send_signal(signal.SIGTERM)
    for code, _, err in ended(processes):
        assert code == 0, err
    assert runs.result_of(tmp_path / "run")["status"] == "stopped" and max(runs.steps_saved(tmp_path / "run")) < 40


def test_missing_process_is_named(home, tmp_path):
    start = time.monotonic()
    first, other = ended(start_all(home, tmp_path / "run", 3, "--join_secs=12", missing=(1,)))
    assert first[0] == 2 and "error: process 1 of 3 did not connect" in first[2]
    assert other[0] == 2 and "error: not all processes have started; see the missing ones" in other[2]
    assert time.monotonic() - start < 120 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [("train.seed", (0, 1)), ("mesh.fsdp", (1, 2))], ids=lambda s: s[0])
def test_processes_with_different_configs_are_an_error(home, tmp_path, settings):
    key, values = settings
    common = [f"--coordinator_address=127.0.0.1:{free_port()}", "--process_count=2"]
    processes = [
        runs.start(home, CHANGES | {key: values[i]}, tmp_path / "run", *common, f"--process_id={i}") for i in range(2)
    ]
    for code, _, err in ended(processes):
        assert code == 2 and "the config or --workdir differs between processes" in err
    assert not (tmp_path / "run").exists()


def test_mesh_that_leaves_a_process_idle_is_an_error(home, tmp_path):
    changes = CHANGES | {"train.batch_size": 1, "mesh.tensor": 1}
    for code, _, err in ended(start_all(home, tmp_path / "run", 2, changes=changes)):
        assert code == 2 and "has none of process 1" in err


def test_each_device_reads_only_its_sequences(home):
    changes = {"train.batch_size": 4, "train.microbatch_size": 2, "mesh.data": 2}
    program = train_program(run.make_plan(runs.tiny_config(home, changes)).program())
    tokens = np.arange(40 * 33, dtype=np.int32).reshape(40, 33)
    asked = []

    def sequences(first: int, count: int) -> np.ndarray:
        asked.append((first, count))
        return tokens[first : first + count]

    staged = program.put_tokens(sequences, 3, 2)
    assert staged.shape == (5, 2, 2, 33)
    assert np.array_equal(staged[:2], tokens[3:11].reshape(2, 2, 2, 33)) and not np.any(staged[2:])
    assert sorted(asked) == [(n, 1) for n in range(3, 11)]  # each by one device, and once


def test_checkpoint_damaged_for_one_process_is_skipped_by_all(home, tmp_path):
    """Each process reads its own part of the arrays, and only the one that gets the damaged part notices."""
    path, changes = tmp_path / "run", CHANGES | {"mesh.data": 1, "mesh.fsdp": 2, "train.sample_tokens": 0}
    for until_tokens in (1280, 2560):
        run.train(runs.tiny_config(home, changes | {"mesh.cpu_devices": None}), path, until_tokens)
    second = runs.steps_saved(path)[-1]
    parts = sorted((path / "checkpoints" / str(second)).rglob("d/*"), key=lambda file: file.stat().st_size)
    assert parts[-1].stat().st_size > 10_000
    parts[-1].write_bytes(parts[-1].read_bytes()[:-4000])
    processes = start_all(home, path, 2, changes=changes)
    for code, _, err in ended(processes):
        assert code == 0, err
    assert runs.result_of(path)["status"] == "done"


def test_processes_with_different_corpora_are_an_error(home, tmp_path):
    port, processes = free_port(), []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        runs.write_jsonl(tmp_path / str(i) / "corpus.jsonl", sentences(300 + i))
        changes = CHANGES | {"data.source": "text:corpus.jsonl", "data.cache_dir": "cache"}
        flags = [f"--coordinator_address=[::1]:{port}", "--process_count=2", f"--process_id={i}"]
        processes.append(runs.start(home, changes, tmp_path / "run", *flags, cwd=tmp_path / str(i)))
    for code, _, err in ended(processes):
        assert code == 2 and "the prepared dataset differs between processes" in err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [((None, 2, 0), "set all three"), (("a", 2, 0), "HOST:PORT"), (("a:1", 2, 2), "number the processes from 0")],
)
def test_invalid_flags_are_an_error(flags, problem):
    with pytest.raises(UserError, match=problem):
        distributed.initialize(*flags, 1.0)


def test_launcher_of_several_processes_is_detected(no_launcher, monkeypatch):
    assert not distributed.is_one_of_several()
    launchers = [
        {"SLURM_STEP_NODELIST": "n1,n2", "SLURM_NTASKS": "2"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"TPU_WORKER_HOSTNAMES": "tpu-0.service,tpu-1.service"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"},
    ]
    for variables in launchers:
        with monkeypatch.context() as environment:
            for name, value in variables.items():
                environment.setenv(name, value)
            assert distributed.is_one_of_several(), variables
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n1")
    assert not distributed.is_one_of_several()
    monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
    with test_cloud.Metadata() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", server.address)
        for hosts, several in [(None, False), ("10.0.0.7", False), ("10.0.0.7,10.0.0.8", True)]:
            server.values["attributes/worker-network-endpoints"] = hosts
            assert distributed.is_one_of_several() == several
        server.shutdown()


def test_connections_of_other_programs_are_ignored():
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(distributed._wait_for_all, f"127.0.0.1:{port}", 2, 0, 20.0)
        time.sleep(0.5)
        for words in (b"GET / HTTP/1.1\r\n", b"\n"):
            with socket.create_connection(("127.0.0.1", port)) as other:
                other.sendall(words)
        distributed._wait_for_all(f"127.0.0.1:{port}", 2, 1, 20.0)
        waiting.result(timeout=20)
