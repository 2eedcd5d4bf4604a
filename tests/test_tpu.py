"""Programs compiled for absent TPU slices by the TPU compiler: kernels, memory and communication."""

import os
import subprocess
import sys

import jax
import pytest
import runs
from model_specs import tiny

from smallbatch.errors import UserError
from smallbatch.specs import DeviceSpec, MeshSpec, ModelSpec, OptimizerSpec, ProgramSpec
from smallbatch.training import sharding
from smallbatch.training.program import TrainProgram

pytestmark = pytest.mark.slow

pytest.importorskip("libtpu", reason="there is no TPU compiler for this machine")


@pytest.fixture(autouse=True)
def programs_are_kept_again():
    """Turn the compilation cache on again, which compiling for an absent slice turns off."""
    yield
    jax.config.update("jax_enable_compilation_cache", True)


home = runs.home
SLICE = "v5e:2x4"
SPEC = tiny(
    layers=1, width=256, head_width=64, ffn_width=512, context_tokens=1024, attention="splash", compute_dtype="bfloat16"
)


ALONE = MeshSpec(1, 1, 1)


def compiled(model: ModelSpec, mesh: MeshSpec = ALONE, optimizer: str = "sgd", seqs: int = 8) -> TrainProgram:
    optimizer_spec = OptimizerSpec(optimizer, "constant")
    return TrainProgram(ProgramSpec(model, optimizer_spec, mesh, "tpu", 2, 1, seqs, 8, SLICE))


def test_each_device_runs_the_kernel_on_its_own_shard():
    mesh = MeshSpec(2, 2, 2)
    text = compiled(SPEC, mesh).chunk.as_text()
    assert text.count("tpu_custom_call") == 3  # forward, dq, dk and dv
    sequences, heads = 8 // (mesh.data * mesh.fsdp), 4 // mesh.tensor
    assert f"bf16[{sequences},{heads},1024,64]" in text


def test_fsdp_gathers_weights_twice_and_never_gathers_adam_state():
    rows = {row.kind: row for row in compiled(SPEC, MeshSpec(1, 8, 1), "adam").traffic()}
    params_bytes = 2 * (4 * 256**2 + 2 * 256 * 512 + 2 * 64 * 256)  # bfloat16; Adam's averages are four times as much
    assert rows["all-gather"].sent_bytes == pytest.approx(2 * 7 / 8 * params_bytes, rel=0.15)
    assert rows["all-gather"].largest_bytes == 2 * 3 * 256**2


def test_a_program_that_does_not_fit_is_a_one_line_error():
    with pytest.raises(UserError, match=r"does not fit in the memory of a device \(.*15.75G.*\); choose") as raised:
        compiled(tiny(**vars(SPEC) | {"width": 4096, "vocab_size": 2**19, "attention": "xla"}), seqs=1).chunk  # noqa: B018
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("topology", "count", "kind"),
    [
        ("v2:2x2", 8, "TPU v2"),  # a device is a core
        ("v3:2x2", 8, "TPU v3"),
        ("v4:2x2x1", 4, "TPU v4"),  # a device is both cores of a chip
        ("v4:2x2x2", 8, "TPU v4"),
        ("v5e:1x1", 1, "TPU v5 lite"),
        ("v5e:2x4", 8, "TPU v5 lite"),
        ("v5p:2x2x1", 4, "TPU v5"),
        ("v6e:1x1", 1, "TPU v6 lite"),
        ("tpu7x:1x1x1", 2, "TPU7x"),
        ("tpu7x:2x2x1", 8, "TPU7x"),
    ],
)
def test_a_topology_has_as_many_devices_as_its_tpu_vm(topology, count, kind):
    assert sharding.slice_spec(topology) == DeviceSpec("tpu", count, kind=kind)


@pytest.mark.parametrize("topology", ["v5e-8", "v5e:1x2", "v9:2x2"])
def test_an_invalid_topology_is_a_one_line_error_with_the_format(topology):
    with pytest.raises(UserError, match=f"--topology={topology} .*write it as v5e:2x4") as raised:
        sharding.slice_spec(topology)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif("TPU_ML_PLATFORM" in os.environ, reason="there is a TPU: JAX has said so on import")
def test_without_a_tpu_libtpu_is_not_started_and_other_devices_are_found(tmp_path):
    program = f"""
from jax.extend.backend import register_backend_factory
def other():
    print("looked for")
    raise RuntimeError("there is none")
register_backend_factory("other", other, priority=400, fail_quietly=True)
from smallbatch.training.jax_setup import start_jax
print(start_jax(2, {str(tmp_path)!r}))
"""
    free = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, cwd=runs.ROOT, env=free
    )
    assert done.returncode == 0 and done.stdout.startswith("looked for\nDeviceSpec(")
    assert "TPU" not in done.stderr  # libtpu would print six lines


def test_a_dry_run_describes_the_topology_and_a_usage_error_is_one_line(home, tmp_path):
    cached = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def dry_run(*words: str) -> subprocess.CompletedProcess:
        argv = [sys.executable, "-m", "smallbatch.train", f"--config.data.cache_dir={home}/cache", *words]
        env = os.environ | cached
        return subprocess.run(argv, capture_output=True, text=True, timeout=300, cwd=runs.ROOT, env=env)

    model = ["--config.model.layers=1", "--config.train.batch_size=8"]
    done = dry_run("--dry_run", f"--topology={SLICE}", *model)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())  # a cached program would give a warning in the next dry run
    assert "8 tpu: data 8 x fsdp 1" in done.stdout and "not splash: it needs a model.context_tokens" in done.stdout
    assert "total" in done.stdout and "sent by each device per update" in done.stdout
    wrong = dry_run("--dry_run", "--topology=v5e-8")
    assert wrong.returncode == 2 and "write it as v5e:2x4" in wrong.stderr and len(wrong.stderr.splitlines()) == 1
    needless = dry_run(f"--topology={SLICE}")
    assert needless.returncode == 2 and "needs --dry_run" in needless.stderr
