"""Choose the mesh, the micro-batch size and the attention kernel."""

from smallbatch.config import Config
from smallbatch.errors import UserError
from smallbatch.specs import DeviceSpec, MeshSpec

# A model whose widest activation of one sequence fits a core's cache runs fastest with one device per core. A larger
# model runs fastest with all cores in each operation and oneDNN's matrix products, which are slow for small products.
CPU_CACHE_BYTES = 2**20
MAX_CPU_DEVICES = 8
SPLASH_CONTEXT = 1024  # for shorter contexts XLA's own attention is about as fast
SPLASH_FLOAT32_ONLY = ("TPU v2", "TPU v3")  # "Unsupported matmul RHS type" in bfloat16 (libtpu 0.0.42)


def cpu_devices(config: Config, cores: int) -> int:
    """Return the number of devices into which JAX should split a machine's CPU if it has no accelerator."""
    mesh, model = config.mesh, config.model
    if mesh.cpu_devices is not None:
        return mesh.cpu_devices
    if least_mesh(mesh).devices == 1 and not fits_cpu_cache(model.context_tokens, model.ffn_width or 4 * model.width):
        return 1
    return min(cores, MAX_CPU_DEVICES)


def fits_cpu_cache(context_tokens: int, ffn_width: int) -> bool:
    """Return whether the widest activation of one sequence, in float32, fits a core's cache."""
    return 4 * context_tokens * ffn_width <= CPU_CACHE_BYTES


def least_mesh(section: Config) -> MeshSpec:
    """Return the mesh of a config's `mesh` section, with 1 for unset axes."""
    return MeshSpec(section.data or 1, section.fsdp, section.tensor or 1, section.sequence)


def mesh(config: Config, sequences: int, devices: DeviceSpec) -> MeshSpec:
    """Return the mesh of a config on these devices, with its unset axes filled in.

    Args:
        sequences: lower bound on sequences per forward pass.

    Raises:
        UserError: there are too few devices, or a size is not divisible by its mesh axis.
    """
    data, fsdp, tensor, sequence = (config.mesh[axis] for axis in ("data", "fsdp", "tensor", "sequence"))
    least = least_mesh(config.mesh)
    if least.devices > devices.count:
        raise UserError(
            f"the mesh needs {least.devices} devices ({least}), but there are {devices.count} on this "
            f"{devices.platform.upper()}; lower mesh.data, mesh.fsdp, mesh.tensor or mesh.sequence"
        )
    if data is None:
        most = devices.count // least.devices
        data = next((n for n in range(most, 0, -1) if sequences % (n * fsdp) == 0), 1)
    if sequences % (data * fsdp):
        raise UserError(
            f"a micro-batch of {sequences} sequences is not divisible by mesh.data x mesh.fsdp = {data} x {fsdp} "
            f"devices; choose a batch size that is a multiple of {data * fsdp}, or a smaller mesh"
        )
    heads = config.model.width // config.model.head_width
    ffn_width = config.model.ffn_width or 4 * config.model.width
    if tensor is None:  # by default, CPU cores that the batch leaves idle split heads and MLP
        idle = max(1, devices.count // (data * fsdp * sequence)) if devices.platform == "cpu" else 1
        tensor = next(n for n in range(idle, 0, -1) if heads % n == 0 and ffn_width % n == 0)
    for axis, size, name, value in (
        ("fsdp", fsdp, "width", config.model.width),
        ("tensor", tensor, "heads", heads),
        ("tensor", tensor, "ffn_width", ffn_width),
    ):
        if value % size:
            raise UserError(f"mesh.{axis}={size} does not divide the model's {value} {name}; lower mesh.{axis}")
    return MeshSpec(data, fsdp, tensor, sequence)


def microbatch_size(on: MeshSpec, batch_size: int, platform: str) -> int:
    """Return the default size: the whole batch, or on a CPU one sequence per device, which is 1.1 to 1.2x as fast."""
    return on.data * on.fsdp if platform == "cpu" else batch_size


def attention(config: Config, on: MeshSpec, devices: DeviceSpec) -> tuple[str, str]:
    """Return the attention kernel, xla | cudnn | splash, and the reason for its selection.

    Raises:
        UserError: the config names a kernel that cannot run.
    """
    asked = config.model.attention
    problems = {"cudnn": _cudnn_problem(config, on, devices), "splash": _splash_problem(config, on, devices)}
    if asked != "auto":
        if problem := problems.get(asked):
            raise UserError(f"model.attention={asked} cannot run: {problem}; set it to auto or xla")
        return asked, "set by model.attention"
    fused = {"gpu": "cudnn", "tpu": "splash"}.get(devices.platform)
    if fused is None:
        return "xla", "there is no fused kernel for a CPU"
    if problems[fused]:
        return "xla", f"not {fused}: {problems[fused]}"
    return fused, f"the fused kernel of a {devices.platform.upper()}"


def _cudnn_problem(config: Config, on: MeshSpec, devices: DeviceSpec) -> str:
    """Return why cuDNN's attention cannot run, or "" if it can, as in jax 0.10 to 0.12."""
    if devices.lanes:
        return "its gradient fails for several lanes, up to jax 0.11"
    head_width, capability = config.model.head_width, devices.compute_capability
    if devices.platform != "gpu":
        return f"it needs a GPU, but this machine has a {devices.platform.upper()}"
    if capability is not None and not (capability.replace(".", "").isdecimal() and float(capability) >= 8):
        return f"it needs an NVIDIA GPU of compute capability 8.0 or later, but this one has {capability}"
    if config.model.compute_dtype != "bfloat16":
        return f"it needs model.compute_dtype=bfloat16, but it is {config.model.compute_dtype}"
    most = 256 if float(capability or 8) >= 9 else 128
    if head_width > most or head_width % 8:
        return f"it needs a model.head_width that is a multiple of 8, up to {most}, but it is {head_width}"
    return _fused_problem(on)


def _splash_problem(config: Config, on: MeshSpec, devices: DeviceSpec) -> str:
    """Return why the splash kernel cannot run or would not help, or "" if it is used."""
    context, head_width = config.model.context_tokens, config.model.head_width
    if devices.platform != "tpu":
        return f"it needs a TPU, but this machine has a {devices.platform.upper()}"
    if devices.kind in SPLASH_FLOAT32_ONLY and config.model.compute_dtype == "bfloat16":
        return f"it does not compile in bfloat16 for a {devices.kind}"
    if context < SPLASH_CONTEXT or context % 128:
        least = f"a multiple of 128, at least {SPLASH_CONTEXT}"
        return f"it needs a model.context_tokens that is {least}, but it is {context}"
    if head_width % 64:
        return f"it needs a model.head_width that is a multiple of 64, but it is {head_width}"
    return _fused_problem(on)


def _fused_problem(on: MeshSpec) -> str:
    return f"it needs whole sequences, but mesh.sequence={on.sequence} splits them" if on.sequence > 1 else ""
