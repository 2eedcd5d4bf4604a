"""Set up JAX before its first use, and describe the devices it finds."""

import contextlib
import os
import warnings
from glob import glob
from importlib import metadata
from pathlib import Path
from platform import machine
from typing import Any

import jax
from jax.extend.backend import register_backend_factory

from smallbatch.errors import UserError
from smallbatch.files import paths
from smallbatch.plan.mesh_plan import fits_cpu_cache
from smallbatch.specs import DeviceSpec, ModelSpec

JAX_PACKAGES = ("jax", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin", "libtpu")


def cpu_cores() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_jax(cpu_devices: int, cache_dir: str | Path) -> DeviceSpec:
    """Set up JAX and return its devices.

    A machine without accelerators gets `cpu_devices` CPU devices. Compiled programs are cached under `cache_dir`.
    """
    with contextlib.suppress(RuntimeError):  # JAX is already running (tests, notebooks); its devices are fixed
        jax.config.update("jax_num_cpu_devices", cpu_devices)
        skip_absent_tpu()
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(paths.local(cache_dir, "data.cache_dir") / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    first = local_devices()[0]
    capability = getattr(first, "compute_capability", None)
    capability = None if capability is None else str(capability)
    return DeviceSpec(jax.default_backend(), jax.device_count(), capability, kind=first.device_kind)


def local_devices() -> list[Any]:
    """Return the devices of this process. Raises UserError if JAX does not have the requested platform."""
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError, without a message: there is no GPU
        platforms = jax.config.values["jax_platforms"]
        installed = [f"{name} {version}" for name in JAX_PACKAGES if (version := _version(name))]
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        missing = f"no device of JAX_PLATFORMS={platforms}" if platforms else "no device that it can use"
        raise UserError(
            f"JAX has {missing}{reason}. Installed: {', '.join(installed)}. Unset JAX_PLATFORMS to use the available "
            "devices, or install the plugin of the platform (pip install 'smallbatch[gpu]' or 'smallbatch[tpu]') on a "
            "machine with such a device"
        ) from error


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def skip_absent_tpu() -> None:
    """Prevent JAX from starting libtpu on a machine without a TPU, where libtpu logs several lines before it fails.

    TPUs are detected by their device files, which are visible in a container, unlike the PCI bus.
    """
    if not jax.config.values["jax_platforms"] and not glob("/dev/accel*") + glob("/dev/vfio/[0-9]*"):
        register_backend_factory("tpu", lambda: None, priority=300, fail_quietly=True)


def compiler_options(platform: str, model: ModelSpec) -> dict[str, bool | str]:
    """Return XLA options that improve on the defaults for this platform."""
    if platform != "cpu":
        return {}
    # Without region analysis, XLA copies every parameter that a loop updates, because it cannot see that the backward
    # pass has read it for the last time. The copies take time, and memory of a third of the parameters.
    options: dict[str, bool | str] = {"xla_cpu_copy_insertion_use_region_analysis": True}
    if not fits_cpu_cache(model.context_tokens, model.ffn_width) and machine() in ("x86_64", "AMD64"):
        # The persistent cache cannot hold such programs (jaxlib 0.12), and JAX warns about each. Every process
        # compiles them again, in about ten seconds.
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry .*onednn")
        options["xla_cpu_use_onednn"] = True
        options["xla_cpu_experimental_onednn_fusion_type"] = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    return options
