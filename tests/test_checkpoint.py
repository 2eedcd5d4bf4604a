"""Checkpoints: exact, written completely or not at all, and verified when they are read."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from smallbatch.errors import UserError
from smallbatch.specs import MeshSpec
from smallbatch.training import checkpoint
from smallbatch.training.checkpoint import Checkpoints
from smallbatch.training.sharding import make_mesh


class OptState(NamedTuple):
    count: jax.Array
    mu: dict


class State(NamedTuple):
    params: dict
    opt_state: OptState


def state_of(step: int, mesh: MeshSpec = MeshSpec(1, 1, 1)) -> State:  # noqa: B008 (frozen)
    """Return a state with every dtype in use, different at every step."""
    values = np.random.default_rng(step).normal(size=(16, 24)).astype(np.float32)
    values[0, :5] = [np.nan, np.inf, -np.inf, -0.0, 1e-40]
    rows = NamedSharding(make_mesh(mesh), PartitionSpec("fsdp"))
    everywhere = NamedSharding(make_mesh(mesh), PartitionSpec())
    put = lambda x, dtype: jax.device_put(x.astype(dtype), rows)
    return State(
        {"blocks.0.up_DxF": put(values, np.float32), "embed_VxD": put(values, jnp.bfloat16)},
        OptState(jax.device_put(np.int32(step), everywhere), {"blocks.0.up_DxF": put(values * 2, np.float32)}),
    )


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def saved(directory: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(directory)
    for step in steps:
        checkpoints.save(step, state_of(step), {"step": step})
    checkpoints.close()
    return checkpoints


def restored(directory: Path, log=pytest.fail):
    return Checkpoints(directory).restore(abstract(state_of(0)), log)


def test_state_and_progress_are_restored_bitwise(tmp_path):
    progress = {"loss_sum": 0.1 + 0.2, "secs": 1e-310, "config": {"a": [1, None, True, "é"]}, "big": 2**60}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, state_of(7), progress)
    checkpoints.close()
    state, back = restored(tmp_path)
    assert_same_bits(state, state_of(7))
    assert back == progress


def test_state_is_restored_on_another_mesh(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state_of(3, MeshSpec(1, 8, 1)), {})
    checkpoints.close()
    for mesh in (MeshSpec(2, 2, 2), MeshSpec(1, 1, 1)):
        wanted = state_of(3, mesh)
        state, _ = checkpoints.restore(abstract(wanted), pytest.fail)
        assert_same_bits(state, wanted)
        for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
            assert x.sharding == y.sharding


@pytest.mark.parametrize("devices", [1, 8])
def test_buffers_can_be_donated_when_save_returns(tmp_path, devices):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 7, tree), donate_argnums=0)
    mesh = make_mesh(MeshSpec(1, devices, 1))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    expected = np.random.default_rng(0).normal(size=(8, 250_000)).astype(np.float32)
    tree = {f"w{i}": jax.device_put(expected, rows) for i in range(4)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree, {})
    for _ in range(3):
        tree = overwrite(tree)
    checkpoints.close()
    assert (np.asarray(tree["w0"]) == -7).all()
    state, _ = checkpoints.restore(abstract(tree), pytest.fail)
    for value in state.values():
        np.testing.assert_array_equal(value, expected)


def test_last_two_are_kept_and_newest_is_restored(tmp_path):
    saved(tmp_path, 9, 10, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "100"]
    assert restored(tmp_path)[1] == {"step": 100}


def test_two_checkpoints_exist_at_every_moment(tmp_path):
    checkpoints = saved(tmp_path, 1, 2)
    on_disk = lambda: {path.name for path in tmp_path.iterdir() if path.name.isdecimal()}
    fewest = len(on_disk())
    checkpoints.save(3, state_of(3), {"step": 3})  # and no other call, as between two saves of a run
    deadline = time.monotonic() + 5
    while on_disk() != {"2", "3"} and time.monotonic() < deadline:
        fewest = min(fewest, len(on_disk()))
    assert on_disk() == {"2", "3"} and fewest == 2
    checkpoints.close()


def test_saves_leave_no_threads(tmp_path):
    checkpoints = saved(tmp_path, 1)
    before = threading.active_count()
    for step in range(2, 8):
        checkpoints.save(step, state_of(step), {})
    checkpoints.close()
    assert threading.active_count() <= before + 1


def test_restore_without_checkpoints_returns_none(tmp_path):
    assert restored(tmp_path) is None
    assert restored(tmp_path / "nothing") is None


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def data_file(step_dir: Path) -> Path:
    return max((path for path in step_dir.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


DAMAGES = {
    "empty directory": lambda step_dir: (shutil.rmtree(step_dir), step_dir.mkdir()),
    "no array data": lambda step_dir: data_file(step_dir).unlink(),
    "array data cut short": lambda step_dir: os.truncate(data_file(step_dir), 100),
    "a bit of array data": lambda step_dir: flip_a_bit(data_file(step_dir)),
    "no manifest": lambda step_dir: (step_dir / "state" / "manifest.ocdbt").unlink(),
    "a bit of the manifest": lambda step_dir: flip_a_bit(step_dir / "state" / "manifest.ocdbt"),
    "no metadata": lambda step_dir: (step_dir / "_CHECKPOINT_METADATA").unlink(),
    "metadata cut short": lambda step_dir: os.truncate(step_dir / "_CHECKPOINT_METADATA", 200),
    "a bit of the metadata": lambda step_dir: flip_a_bit(step_dir / "_CHECKPOINT_METADATA"),
}


# On a busy machine, reads that orbax abandons fail after its error has been raised.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoint_is_skipped_with_one_line(tmp_path, damage, capfd, caplog):
    saved(tmp_path, 1, 2)
    damage(tmp_path / "2")
    lines = []
    state, progress = restored(tmp_path, lines.append)
    assert_same_bits(state, state_of(1))
    assert progress == {"step": 1}
    assert len(lines) == 1 and "\n" not in lines[0]
    assert f"{tmp_path / '2'} is damaged (" in lines[0] and lines[0].endswith(f"restoring {tmp_path / str(1)} instead")
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_error_if_all_checkpoints_are_damaged(tmp_path):
    saved(tmp_path, 1, 2)
    for step in "12":
        flip_a_bit(data_file(tmp_path / step))
    lines = []
    with pytest.raises(UserError, match=r"1 is damaged \(the checksum of .* is wrong\), and no older") as error:
        restored(tmp_path, lines.append)
    assert len(lines) == 1 and "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_saves_after_a_damaged_checkpoint_replace_it(tmp_path, damage):
    saved(tmp_path, 1, 3)
    damage(tmp_path / "3")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.restore(abstract(state_of(0)), lambda line: None)
    for step in (1, 2, 3):  # it was restored from step 1
        checkpoints.save(step, state_of(step), {"step": step})
        checkpoints.wait()
        assert restored(tmp_path, lambda line: None)[1] == {"step": step}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    assert_same_bits(restored(tmp_path)[0], state_of(3))


def test_checkpoint_of_another_model_is_an_error(tmp_path):
    saved(tmp_path, 1)
    other = abstract(state_of(0))
    name = "embed_VxD"
    for kind, shown in ((jnp.float32, r"float32\[16,24\]"), ("int32", r"int32\[16,24\]")):
        other.params[name] = jax.ShapeDtypeStruct((16, 24), kind, sharding=other.params[name].sharding)
        with pytest.raises(UserError, match=rf"params/{name} is bfloat16\[16,24\], not {shown}"):
            Checkpoints(tmp_path).restore(other, pytest.fail)
    with pytest.raises(UserError, match=r"params/new is nothing\[\], not"):
        Checkpoints(tmp_path).restore({"params": {"new": other.params[name]}}, pytest.fail)


def test_part_of_a_state_is_restored(tmp_path):
    saved(tmp_path, 5)
    part = {"params": abstract(state_of(0)).params}
    state, _ = Checkpoints(tmp_path).restore(part, pytest.fail)
    assert_same_bits(state, {"params": state_of(5).params})


def test_failed_save_raises_and_keeps_the_last_checkpoint(tmp_path):
    checkpoints = saved(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # writes fail as on a full disk
    try:
        with pytest.raises(UserError, match=r"cannot write a checkpoint to .*; free some space"):
            checkpoints.save(2, state_of(2), {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert restored(tmp_path)[1] == {"step": 1}
    checkpoints.save(3, state_of(3), {"step": 3})
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


def test_directory_that_cannot_be_created_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write a checkpoint to .*file/x"):
        Checkpoints(tmp_path / "file" / "x").save(1, state_of(1), {})


@pytest.mark.parametrize("newest_moves", [True, False], ids=["another appeared", "none is left"])
def test_checkpoint_deleted_while_it_is_read_is_not_reported_as_damaged(tmp_path, monkeypatch, newest_moves):
    saved(tmp_path / "ahead", 3)
    saved(tmp_path / "run", 1, 2)
    read = checkpoint._read

    def concurrently_deleted(path, wanted):
        if path.name == "2":
            shutil.rmtree(tmp_path / "run")
            if newest_moves:
                shutil.move(tmp_path / "ahead", tmp_path / "run")
        return read(path, wanted)

    monkeypatch.setattr(checkpoint, "_read", concurrently_deleted)
    found = restored(tmp_path / "run")
    assert found[1] == {"step": 3} if newest_moves else found is None


FAILING_MKDIR = """
import errno, os, sys
sys.path.insert(0, sys.argv[2])
import conftest
from pathlib import Path
from test_checkpoint import Checkpoints, state_of
make, left = os.mkdir, int(sys.argv[3])

def mkdir(path, *args, **options):
    global left
    if "checkpoints/" in str(path):
        left -= 1
        if left < 0:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
    make(path, *args, **options)

os.mkdir = mkdir
checkpoints = Checkpoints(Path(sys.argv[1]) / "checkpoints")
try:
    checkpoints.save(1, state_of(1), {})
    checkpoints.close()
except ValueError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("made_before", [0, 2])
def test_failed_mkdir_ends_the_process_at_once_with_one_line(tmp_path, made_before):
    words = [sys.executable, "-c", FAILING_MKDIR, str(tmp_path), str(Path(__file__).parent), str(made_before)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)  # it used to take 300 s
    assert done.stdout.startswith(f"UserError cannot write a checkpoint to {tmp_path}/checkpoints: ")
    assert "Permission denied" in done.stdout and done.stdout.count("\n") == 1 and done.stderr == ""


ENDLESS_SAVES = """
import sys
sys.path.insert(0, sys.argv[2])
import conftest
from pathlib import Path
from test_checkpoint import Checkpoints, state_of
checkpoints = Checkpoints(Path(sys.argv[1]))
for step in range(1, 10_000):
    checkpoints.save(step, state_of(step), {"step": step})
    print(step, flush=True)  # the previous one is on disk
"""


def test_kill_at_any_moment_leaves_the_last_complete_checkpoint(tmp_path):
    tests = str(Path(__file__).parent)
    process = subprocess.Popen([sys.executable, "-c", ENDLESS_SAVES, tmp_path, tests], stdout=subprocess.PIPE)
    with process:
        begun = [int(process.stdout.readline()) for _ in range(6)]
        time.sleep(np.random.default_rng().uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        begun += [int(line) for line in process.stdout]
    state, progress = restored(tmp_path)
    assert progress["step"] >= begun[-1] - 1
    assert_same_bits(state, state_of(progress["step"]))
    (tmp_path / "9.orbax-checkpoint-tmp" / "state").mkdir(parents=True, exist_ok=True)
    saved(tmp_path, progress["step"] + 1)
    assert sorted(int(path.name) for path in tmp_path.iterdir())[-1] == progress["step"] + 1
    assert len(list(tmp_path.iterdir())) == 2


def test_checksum_depends_on_every_bit_and_position_but_not_on_the_mesh():
    rng = np.random.default_rng(0)
    for dtype, words in ((np.float32, np.uint32), (jnp.bfloat16, np.uint16), (np.int32, np.uint32)):
        bits = rng.integers(0, 2 ** (8 * words().itemsize), (8, 5), words)
        checksum = lambda bits, dtype=dtype: int(checkpoint._checksum(bits.view(dtype)))
        expected = checksum(bits)
        for _ in range(40):
            row, column, bit = rng.integers(8), rng.integers(5), rng.integers(8 * words().itemsize)
            flipped = bits.copy()
            flipped[row, column] ^= words(1 << int(bit))
            assert checksum(flipped) != expected
        assert checksum(bits[::-1].copy()) != expected
        rows = NamedSharding(make_mesh(MeshSpec(1, 8, 1)), PartitionSpec("fsdp"))
        assert int(checkpoint._checksum(jax.device_put(bits.view(dtype), rows))) == expected


SPLIT_OVER_ONE_CORE = """
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
jax.config.update("jax_num_cpu_devices", 2)
from smallbatch.training import checkpoint
split = NamedSharding(Mesh(np.array(jax.devices()), ("tensor",)), PartitionSpec(None, "tensor"))
arrays = {str(i): jax.device_put(np.full((128, 64 * (1 + i % 3)), i, np.float32), split) for i in range(40)}
first = checkpoint._checksums(arrays)
for _ in range(100):
    assert checkpoint._checksums(arrays) == first
"""


def test_checksums_do_not_deadlock_on_devices_that_share_a_core():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", SPLIT_OVER_ONE_CORE], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
