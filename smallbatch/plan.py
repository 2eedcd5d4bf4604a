"""Every number that follows from a config, derived once, in float64, before anything runs; printed and written down."""

import dataclasses
from dataclasses import dataclass, replace

from smallbatch import flops, units
from smallbatch.config import Config, fingerprint
from smallbatch.errors import UserError
from smallbatch.specs import OPTIMIZER_KEYS, DataSpec, MeshSpec, ModelSpec, OptimizerSpec
from smallbatch.transfer import Tuned, transfer

# A dispatch holds some seconds of work on a CPU and a tenth of one on an accelerator: long enough that its overhead
# (on a CPU, memory for the activations that the system hands out page by page) does not count, short enough that
# progress, saving and stopping do not wait.
DISPATCH_FLOPS = {"cpu": 5e11}
DISPATCH_FLOPS_ACCELERATOR = 2e13
MAX_STEPS_PER_DISPATCH = 64
VALIDATION_BATCH_TOKENS = 16_384
# A model whose widest activation of one sequence stays in a core's own cache runs best with a device a core; a larger
# one with all cores in each operation, and with oneDNN's matrix products, whose set-up costs small products too much.
CPU_CACHE_BYTES = 2**20
MAX_CPU_DEVICES = 8


@dataclass(frozen=True)
class RunningAverage:
    """A decay, in every unit it is spoken of in."""

    name: str  # b1 | b2
    complement: float  # 1 - b
    half_life_tokens: float
    half_life_steps: float
    half_life_frac: float  # of the run


@dataclass(frozen=True)
class Plan:
    """What a run will do. A run is determined by its plan and its dataset."""

    fingerprint: str
    model: ModelSpec
    data: DataSpec
    optimizer: OptimizerSpec
    mesh: MeshSpec
    platform: str
    hypers: dict[str, float]  # the fields of optim.Hypers
    averages: tuple[RunningAverage, ...]
    transfer: str | None  # where the hyperparameters come from, if from another batch size
    seed: int
    shuffle_seed: int
    batch_size: int
    microbatch_size: int
    tokens_per_step: int
    budget_tokens: int
    optimizer_steps: int
    warmup_tokens: float
    steps_per_dispatch: int
    log_every_steps: int
    validate_every_steps: int | None
    validation_batch_seqs: int
    validation_microbatch_seqs: int
    diverged_above_start_nats: float
    non_embedding_params: int
    active_params: int
    params: int
    flops_per_token: int
    flops: float

    @property
    def accumulation_steps(self) -> int:
        return self.batch_size // self.microbatch_size

    @property
    def weight_decay_timescale_frac(self) -> float | None:
        """tau = B / (lr wd D) of AdamW in fractions of the run (Bergsma et al. 2025, arXiv 2505.13738), at the peak."""
        rate = self.hypers["peak_lr"] * self.hypers["weight_decay"]
        return 1 / (rate * self.optimizer_steps) if rate else None

    def to_dict(self) -> dict:
        """Return nested plain values, as they are written to plan.json."""
        return dataclasses.asdict(self)


def data_spec(config: Config) -> DataSpec:
    """Return what `data.prepare` is told."""
    names = [field.name for field in dataclasses.fields(DataSpec)]
    return DataSpec(**{name: config.data[name] for name in names})


def cpu_devices(config: Config, cores: int) -> int:
    """Return how many devices JAX should make of this machine's CPU, where that is all there is."""
    mesh, model = config.mesh, config.model
    if mesh.cpu_devices is not None:
        return mesh.cpu_devices
    asked = (mesh.data or 1) * mesh.fsdp * (mesh.tensor or 1)
    if asked == 1 and not fits_cpu_cache(model.context_tokens, model.ffn_width or 4 * model.width):
        return 1
    return min(cores, MAX_CPU_DEVICES)


def make(config: Config, *, vocab_size: int, device_count: int, platform: str) -> Plan:
    """Return the plan of a validated config on these devices. Raises UserError for what they cannot do."""
    train = config.train
    model = _model(config, vocab_size, platform)
    mesh = _mesh(config, train.microbatch_size or train.batch_size, device_count, platform)
    microbatch = train.microbatch_size or _microbatch(mesh, train.batch_size, platform)
    tokens_per_step = train.batch_size * model.context_tokens
    steps = units.steps_from_tokens(train.budget_tokens, tokens_per_step)
    tuned = _hyperparameters(config, tokens_per_step)
    averages = _averages(tuned, tokens_per_step, train.budget_tokens)
    complements = {f"{average.name}_complement": average.complement for average in averages}
    warmup_tokens = _warmup_tokens(config)
    step_flops = flops.train_flops_per_token(model) * tokens_per_step
    validation_batch_seqs = _validation_batch_seqs(model, mesh)
    return Plan(
        fingerprint=fingerprint(config),
        model=model,
        data=data_spec(config),
        optimizer=OptimizerSpec(config.optimizer.name, config.optimizer.schedule, config.optimizer.nesterov),
        mesh=mesh,
        platform=platform,
        hypers={
            "peak_lr": tuned.peak_lr,
            "final_lr_frac": config.optimizer.final_lr_frac,
            "warmup_steps": warmup_tokens / tokens_per_step,
            "total_steps": float(steps),
            "decay_steps": (config.optimizer.decay_frac or 0.0) * steps,
            "b1_complement": complements.get("b1_complement", 1.0),
            "b2_complement": complements.get("b2_complement", 1.0),
            "eps": tuned.eps,
            "weight_decay": config.optimizer.weight_decay,
            "decay_exponent": config.optimizer.decay_exponent,
            "embed_lr_ratio": (config.optimizer.embed_lr or 0.0) / config.optimizer.peak_lr,
        },
        averages=averages,
        transfer=_transfer_words(config.optimizer),
        seed=train.seed,
        shuffle_seed=config.data.shuffle_seed,
        batch_size=train.batch_size,
        microbatch_size=microbatch,
        tokens_per_step=tokens_per_step,
        budget_tokens=train.budget_tokens,
        optimizer_steps=steps,
        warmup_tokens=warmup_tokens,
        steps_per_dispatch=train.steps_per_dispatch or _steps_per_dispatch(step_flops, platform),
        log_every_steps=_every(train.log_every_tokens, tokens_per_step),
        validate_every_steps=(
            None if train.validate_every_tokens is None else _every(train.validate_every_tokens, tokens_per_step)
        ),
        validation_batch_seqs=validation_batch_seqs,
        validation_microbatch_seqs=_microbatch(mesh, validation_batch_seqs, platform),
        diverged_above_start_nats=train.diverged_above_start_nats,
        non_embedding_params=flops.non_embedding_params(model),
        active_params=flops.active_params(model),
        params=flops.total_params(model),
        flops_per_token=flops.train_flops_per_token(model),
        flops=float(flops.train_flops_per_token(model)) * train.budget_tokens,
    )


def _model(config: Config, vocab_size: int, platform: str) -> ModelSpec:
    values = dict(config.model.to_dict())
    values["ffn_width"] = values["ffn_width"] or 4 * values["width"]
    values["attention"] = _attention(values["attention"], platform)
    return ModelSpec(vocab_size=vocab_size, **values)


def _attention(kind: str, platform: str) -> str:
    needs = {"cudnn": "gpu", "splash": "tpu"}
    if kind in needs and platform != needs[kind]:
        raise UserError(
            f"model.attention={kind} needs a {needs[kind].upper()}, and this machine has a {platform.upper()}; "
            "set it to auto or xla"
        )
    return "xla" if kind == "auto" else kind


def _mesh(config: Config, microbatch: int, device_count: int, platform: str) -> MeshSpec:
    data, fsdp, tensor = config.mesh.data, config.mesh.fsdp, config.mesh.tensor
    wanted = (data or 1) * fsdp * (tensor or 1)
    if wanted > device_count:
        raise UserError(
            f"the mesh wants {wanted} devices (data {data or 1} x fsdp {fsdp} x tensor {tensor or 1}), and there are "
            f"{device_count} on this {platform.upper()}; lower mesh.data, mesh.fsdp or mesh.tensor"
        )
    if data is None:
        most = device_count // (fsdp * (tensor or 1))
        data = next((n for n in range(most, 0, -1) if microbatch % (n * fsdp) == 0), 1)
    if microbatch % (data * fsdp):
        raise UserError(
            f"a micro-batch of {microbatch} sequences does not divide over mesh.data x mesh.fsdp = {data} x {fsdp} "
            f"devices; choose a batch size that is a multiple of {data * fsdp}, or a smaller mesh"
        )
    if tensor is None:
        tensor = _idle_cores(config, device_count // (data * fsdp)) if platform == "cpu" else 1
    for name, size in (("width", fsdp), ("heads", tensor), ("ffn_width", tensor)):
        values = config.model.to_dict()
        values["heads"] = config.model.width // config.model.head_width
        values["ffn_width"] = values["ffn_width"] or 4 * config.model.width
        if values[name] % size:
            axis = "fsdp" if name == "width" else "tensor"
            raise UserError(f"mesh.{axis}={size} does not divide the model's {values[name]} {name}; lower mesh.{axis}")
    return MeshSpec(data=data, fsdp=fsdp, tensor=tensor)


def fits_cpu_cache(context_tokens: int, ffn_width: int) -> bool:
    """Tell whether the widest activation of one sequence, in float32, stays in a core's own cache."""
    return 4 * context_tokens * ffn_width <= CPU_CACHE_BYTES


def _microbatch(mesh: MeshSpec, batch_size: int, platform: str) -> int:
    """Return the whole batch; on a CPU a sequence a device, 1.1 to 1.2 times as fast. Changes rounding only."""
    return mesh.data * mesh.fsdp if platform == "cpu" else batch_size


def _idle_cores(config: Config, idle: int) -> int:
    """Return how many of the CPU devices that the batch leaves idle can share the heads and the MLP."""
    heads = config.model.width // config.model.head_width
    ffn_width = config.model.ffn_width or 4 * config.model.width
    return next(n for n in range(max(idle, 1), 0, -1) if heads % n == 0 and ffn_width % n == 0)


def _hyperparameters(config: Config, tokens_per_step: int) -> Tuned:
    """Return what depends on the batch size: as it is set, or carried over from where it was tuned."""
    optimizer = config.optimizer
    tuned_tokens_per_step = (optimizer.tuned_at_batch_size or config.train.batch_size) * config.model.context_tokens

    def complement(name: str, decay: float | None, half_life_tokens: float | None) -> float | None:
        if name not in OPTIMIZER_KEYS[optimizer.name]:
            return None
        if half_life_tokens is not None:
            return units.complement_from_half_life(half_life_tokens, tuned_tokens_per_step)
        assert decay is not None
        return 1.0 - decay

    tuned = Tuned(
        optimizer.peak_lr,
        complement("b1", optimizer.b1, optimizer.t1_tokens),
        complement("b2", optimizer.b2, optimizer.t2_tokens),
        optimizer.eps,
    )
    if optimizer.transfer_rule is not None:
        ratio = tokens_per_step / tuned_tokens_per_step
        tuned = transfer(optimizer.transfer_rule, tuned, ratio, optimizer.lr_exponent)
    if tuned.b2_complement is None:
        return tuned
    return replace(tuned, b2_complement=_limited(tuned.b2_complement, optimizer.b2_min, optimizer.b2_max))


def _transfer_words(optimizer: Config) -> str | None:
    if optimizer.transfer_rule is None:
        return None
    exponent = "" if optimizer.lr_exponent is None else f", learning rate x ratio^{optimizer.lr_exponent:g}"
    return (
        f"by the {optimizer.transfer_rule} rule from batch size {optimizer.tuned_at_batch_size:,}, where the peak "
        f"learning rate is {optimizer.peak_lr:g}{exponent}"
    )


def _averages(tuned: Tuned, tokens_per_step: int, budget_tokens: int) -> tuple[RunningAverage, ...]:
    """Return the optimizer's averages of the gradient (b1) and of its square (b2), those that it has."""

    def average(name: str, complement: float) -> RunningAverage:
        tokens = units.half_life_from_complement(complement, tokens_per_step)
        return RunningAverage(name, complement, tokens, tokens / tokens_per_step, tokens / budget_tokens)

    complements = {"b1": tuned.b1_complement, "b2": tuned.b2_complement}
    return tuple(average(name, value) for name, value in complements.items() if value is not None)


def _limited(complement: float, b_min: float | None, b_max: float | None) -> float:
    """Return 1 - b for the b nearest to the given one between a floor and a ceiling."""
    if b_min is not None:
        complement = min(complement, 1.0 - b_min)
    return complement if b_max is None else max(complement, 1.0 - b_max)


def _warmup_tokens(config: Config) -> float:
    if config.optimizer.warmup_tokens is not None:
        return float(config.optimizer.warmup_tokens)
    return config.optimizer.warmup_frac * config.train.budget_tokens


def _steps_per_dispatch(step_flops: float, platform: str) -> int:
    target = DISPATCH_FLOPS.get(platform, DISPATCH_FLOPS_ACCELERATOR)
    return max(1, min(MAX_STEPS_PER_DISPATCH, int(target / step_flops)))


def _every(tokens: int, tokens_per_step: int) -> int:
    """Return an interval in steps; one shorter than a step means every step."""
    return max(1, tokens // tokens_per_step)


def _validation_batch_seqs(model: ModelSpec, mesh: MeshSpec) -> int:
    """Return a size that depends on the context alone, but for padding rows to fill the mesh."""
    seqs = max(1, VALIDATION_BATCH_TOKENS // model.context_tokens)
    shards = mesh.data * mesh.fsdp
    return -(-seqs // shards) * shards
