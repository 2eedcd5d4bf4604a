"""One run in two and four real processes: the same numbers, lost processes, stops, and words about what is missing."""

import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import runs
import test_cloud
from data_specs import sentences

from smallbatch.errors import UserError
from smallbatch.training import distributed, run
from smallbatch.training.program import train_program

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
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def nowhere(monkeypatch):
    """Neither Slurm nor a slice nor Kubernetes, whatever runs the tests."""
    for name in [
        name for name in os.environ if name.startswith(("SLURM_", "TPU_", "MEGASCALE_", "JOB_COMPLETION", "GCE_"))
    ]:
        monkeypatch.delenv(name)


def connected(port: int) -> socket.socket:
    """Connect as soon as somebody listens."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def start_all(
    home: Path, path: Path, processes: int, *more: str, changes=CHANGES, left_out=()
) -> list[subprocess.Popen]:
    port = free_port()
    common = [f"--coordinator_address=127.0.0.1:{port}", f"--process_count={processes}", *more]
    numbers = [i for i in range(processes) if i not in left_out]
    return [runs.start(home, changes, path, *common, f"--process_id={i}") for i in numbers]


def ended(processes: list[subprocess.Popen], secs: float = 600.0) -> list[tuple[int, str, str]]:
    """Return (exit code, stdout, stderr) of every process."""
    found = [process.communicate(timeout=secs) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def assert_same_losses(path: Path, reference: Path) -> None:
    """Assert equality but for the order of sums, which follows the number of devices."""
    ours, theirs = runs.numbers(path), runs.numbers(reference)
    assert [r["step"] for r in ours] == [r["step"] for r in theirs]
    np.testing.assert_allclose([r["loss_nats"] for r in ours], [r["loss_nats"] for r in theirs], rtol=2e-5)


@pytest.fixture(scope="module")
def alone(home, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("alone") / "run"
    done = runs.command(home, CHANGES, path)
    assert done.returncode == 0, done.stderr
    return path


def test_four_processes_train_as_one_and_only_the_first_speaks(home, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody there: it is not to be asked
    first, *others = ended(start_all(home, tmp_path / "run", 4))
    assert first[0] == 0, first[2]
    assert (
        "status      done" in first[1]
        and "batch 4 x 32 tokens" in first[2]
        and "4 cpu devices in 4 processes" in first[2]
    )
    for code, out, err in others:
        said = [line for line in out.splitlines() if not line.startswith("[Gloo]")]
        assert code == 0 and not said and "train" not in err
    assert_same_losses(tmp_path / "run", alone)
    ours, theirs = runs.result_of(tmp_path / "run"), runs.result_of(alone)
    assert ours["validation_loss_nats"] == pytest.approx(theirs["validation_loss_nats"], rel=2e-5)
    assert ours["sample"] == theirs["sample"]


def test_a_run_goes_on_with_other_numbers_of_processes_after_a_loss_and_a_stop(home, alone, tmp_path):
    path = tmp_path / "run"
    saved = lambda beyond: lambda: any(step > beyond for step in runs.steps_saved(path))
    # Every save waits for the one before, so that the run cannot be over before a save is seen.
    changes = CHANGES | {"train.checkpoint_every_secs": 0.0}
    processes = start_all(home, path, 2, changes=changes)
    assert runs.wait_until(processes[0], saved(0))
    processes[1].kill()
    (code, _, err), _ = ended(processes, secs=2 * distributed.HEARTBEAT_SECS + 30)
    assert code not in (0, 2, None) and not (path / "result.json").exists()  # 2 is a mistake of the person
    assert "another process of this run is gone" in err or "heartbeat timeout" in err

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


def test_a_stop_asked_for_before_the_first_update_saves_too(home, tmp_path):
    """JAX takes SIGTERM for itself when processes have met, and compiling may take longer than there is time."""
    processes = start_all(home, tmp_path / "run", 2)
    first = processes[0].stderr
    assert first is not None and any("compiling" in line for line in first)
    processes[1].send_signal(signal.SIGTERM)
    for code, _, err in ended(processes):
        assert code == 0, err
    assert runs.result_of(tmp_path / "run")["status"] == "stopped" and max(runs.steps_saved(tmp_path / "run")) < 40


def test_a_process_that_does_not_come_is_named(home, tmp_path):
    start = time.monotonic()
    for code, _, err in ended(start_all(home, tmp_path / "run", 3, "--join_secs=12", left_out=(1,))):
        assert code == 2 and "error: process 1 of 3 did not come to 127.0.0.1:" in err
    assert time.monotonic() - start < 120 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [("train.seed", (0, 1)), ("mesh.fsdp", (1, 2))], ids=lambda s: s[0])
def test_processes_with_other_settings_are_refused(home, tmp_path, settings):
    key, values = settings
    port = free_port()
    common = [f"--coordinator_address=127.0.0.1:{port}", "--process_count=2"]
    processes = [
        runs.start(home, CHANGES | {key: values[i]}, tmp_path / "run", *common, f"--process_id={i}") for i in range(2)
    ]
    for code, _, err in ended(processes):
        assert code == 2 and "process 1 was started with other settings than process 0" in err


def test_a_mesh_that_leaves_a_process_without_work_is_refused(home, tmp_path):
    changes = CHANGES | {"train.batch_size": 1, "mesh.tensor": 1}
    for code, _, err in ended(start_all(home, tmp_path / "run", 2, changes=changes)):
        assert code == 2 and "leaves process 1 without work" in err


def test_the_sequences_of_a_batch_are_read_by_the_devices_that_get_them(home):
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


def test_a_checkpoint_damaged_for_one_process_is_passed_over_by_all(home, tmp_path):
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


def test_processes_with_other_corpora_are_refused(home, tmp_path):
    port, processes = free_port(), []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        runs.write_jsonl(tmp_path / str(i) / "corpus.jsonl", sentences(300 + i))
        changes = CHANGES | {"data.source": "text:corpus.jsonl", "data.cache_dir": "cache"}
        flags = [f"--coordinator_address=[::1]:{port}", "--process_count=2", f"--process_id={i}"]
        processes.append(runs.start(home, changes, tmp_path / "run", *flags, cwd=tmp_path / str(i)))
    for code, _, err in ended(processes):
        assert code == 2 and "the dataset that it prepared is not the same in all processes" in err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_place_is_read_from_flags_and_from_slurm(nowhere, monkeypatch):
    assert distributed.place(None, None, None) is None
    assert distributed.place("a:1", 1, 0) is None
    assert distributed.place("a:1", 2, 1) == distributed.Place("a:1", 2, 1)
    for given, words in [((None, 2, 0), "together"), (("a", 2, 0), "HOST:PORT"), (("a:1", 2, 2), "numbered from 0")]:
        with pytest.raises(UserError, match=words):
            distributed.place(*given)
    step = {"SLURM_JOB_ID": "4097", "SLURM_NTASKS": "4", "SLURM_PROCID": "2"}
    for nodes, host in [("n1,n2", "n1"), ("n[007-9,12]", "n007"), ("gpu-a[3]", "gpu-a3"), ("solo", "solo")]:
        for name, value in (step | {"SLURM_STEP_NODELIST": nodes}).items():
            monkeypatch.setenv(name, value)
        assert distributed.place(None, None, None) == distributed.Place(f"{host}:61441", 4, 2)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert distributed.place(None, None, None) is None


def test_place_is_read_from_a_tpu_slice_and_an_indexed_job_of_kubernetes(nowhere, monkeypatch):
    with monkeypatch.context() as kubernetes:
        kubernetes.setenv("JOB_COMPLETION_INDEX", "2")
        assert distributed.place("job-0.service:7000", 4, None) == distributed.Place("job-0.service:7000", 4, 2)
        assert distributed.place(None, None, None) is None  # sweeps that share a directory
    with monkeypatch.context() as kubernetes:
        kubernetes.setenv("TPU_WORKER_HOSTNAMES", "tpu-0.service,tpu-1.service")
        kubernetes.setenv("TPU_WORKER_ID", "1")
        assert distributed.place(None, None, None) == distributed.Place("tpu-0.service:8482", 2, 1)
        for name, value in {"COORDINATOR_ADDRESS": "tpu-0.first:8080", "NUM_SLICES": "3", "SLICE_ID": "2"}.items():
            kubernetes.setenv(f"MEGASCALE_{name}", value)
        assert distributed.place(None, None, None) == distributed.Place("tpu-0.first:8482", 6, 5)
        kubernetes.delenv("TPU_WORKER_ID")
        with pytest.raises(UserError, match="TPU_WORKER_ID is '' on one of 6 hosts"):
            distributed.place(None, None, None)
    with monkeypatch.context() as kubernetes:
        kubernetes.setenv("TPU_WORKER_HOSTNAMES", "localhost")
        assert distributed.place(None, None, None) is None
    monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
    with test_cloud.Metadata() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", server.address)
        assert distributed.place(None, None, None) is None  # a machine of the cloud, and no slice
        server.values["attributes/agent-worker-number"] = "1"
        for endpoints in ("10.0.0.7,10.0.0.8", "unknown:1:10.0.0.7,unknown:2:10.0.0.8"):
            server.values["attributes/worker-network-endpoints"] = endpoints
            assert distributed.place(None, None, None) == distributed.Place("10.0.0.7:8482", 2, 1)
        server.values["attributes/tpu-env"] = (
            "ZONE: 'us-east5-a'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
            "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.3:8080'\n"
        )
        assert distributed.place(None, None, None) == distributed.Place("10.0.0.3:8482", 4, 3)
        server.values |= {"attributes/worker-network-endpoints": "10.0.0.7", "attributes/tpu-env": "ZONE: 'here'"}
        assert distributed.place(None, None, None) is None
        server.shutdown()


def test_roll_call_passes_over_strangers_and_refuses_a_number_given_twice():
    port = free_port()
    where = [distributed.Place(f"127.0.0.1:{port}", 3, i) for i in (0, 1, 1)]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(distributed.roll_call, where[0], "x", 20.0)]
        for words in (b"GET / HTTP/1.1\r\n", b"5\n", b"{}\n"):
            with connected(port) as stranger:
                stranger.sendall(words)
        calls += [pool.submit(distributed.roll_call, place, "x", 20.0) for place in where[1:]]
        for call in calls:
            with pytest.raises(UserError, match="two processes say that they are number 1"):
                call.result(timeout=30)
