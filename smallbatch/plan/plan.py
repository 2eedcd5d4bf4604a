"""Every number that follows from a config, derived once, in float64, before anything runs; printed and written down."""

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Any

from smallbatch.config import Config, fingerprint
from smallbatch.config.batch_schedule import stages
from smallbatch.plan import flops, hyperparameters
from smallbatch.plan import mesh_plan as layout
from smallbatch.plan.hyperparameters import RunningAverage
from smallbatch.specs import DataSpec, DeviceSpec, MeshSpec, ModelSpec, OptimizerSpec, ProgramSpec

# A dispatch holds some seconds of work on a CPU and a tenth of one on an accelerator: long enough that its overhead
# (on a CPU, memory for the activations that the system hands out page by page) does not count, short enough that
# progress, saving and stopping do not wait.
DISPATCH_FLOPS = {"cpu": 5e11}
DISPATCH_FLOPS_ACCELERATOR = 2e13
MAX_STEPS_PER_DISPATCH = 64
VALIDATION_BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Plan:
    """What a run will do. A run is determined by its plan and its dataset.

    Where the batch grows on the way, this is the plan of the first stage, and `later` has those of the others; what
    depends on the batch size differs between them, all else is the same.
    """

    fingerprint: str
    model: ModelSpec
    data: DataSpec
    optimizer: OptimizerSpec
    mesh: MeshSpec
    platform: str
    attention_reason: str  # why the model's attention is the one it is
    hyperparams: dict[str, Any]  # the fields of optim.HyperParams
    averages: tuple[RunningAverage, ...]
    transfer: str | None  # where the hyperparameters come from, if from another batch size
    seed: int
    shuffle_seed: int
    first_step: int  # updates finished before this stage
    last_step: int  # and after it
    first_tokens: int
    batch_size: int
    microbatch_size: int
    tokens_per_step: int
    asked_budget_tokens: int
    budget_tokens: int  # train.budget_tokens, rounded up to whole updates
    optimizer_steps: int  # of the whole run
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
    first_learning_rates: tuple[float, ...]
    warnings: tuple[str, ...] = ()  # about allowed but probably unintended values; printed before the run
    later: tuple["Plan", ...] = ()

    @property
    def accumulation_steps(self) -> int:
        return self.batch_size // self.microbatch_size

    @property
    def weight_decay_timescale_frac(self) -> float | None:
        """tau = B / (lr wd D) of AdamW in fractions of the run (Bergsma et al. 2025, arXiv 2505.13738), at the peak."""
        rate = self.hyperparams["peak_lr"] * self.hyperparams["weight_decay"]
        return 1 / (rate * self.optimizer_steps) if rate else None

    @property
    def noise_scale_from(self) -> str:
        """What the gradient noise scale is estimated from: it depends on the devices where `mesh.data` does."""
        if self.optimizer.diagnostics == "parts":
            return f"parts of {self.microbatch_size // self.mesh.data_groups} sequences"
        return {"successive": "successive gradients", "off": "nothing"}[self.optimizer.diagnostics]

    def tokens_at(self, step: int) -> int:
        """Return the tokens seen after `step` updates, one of this stage."""
        return self.first_tokens + (step - self.first_step) * self.tokens_per_step

    def step_at(self, tokens: int) -> int:
        """Return the first number of updates of the run after which so many tokens have been seen."""
        for stage in (self, *self.later):
            step = stage.first_step + -(-(tokens - stage.first_tokens) // stage.tokens_per_step)
            if step <= stage.last_step:
                return max(step, stage.first_step)
        return self.optimizer_steps

    def stage_at(self, step: int) -> "Plan":
        """Return the plan of the stage that the update after `step` updates belongs to; of the last one at the end."""
        return next((stage for stage in (self, *self.later) if step < stage.last_step), (self, *self.later)[-1])

    @property
    def program(self) -> ProgramSpec:
        """What is compiled for it."""
        return ProgramSpec(
            self.model,
            self.optimizer,
            self.mesh,
            self.platform,
            self.steps_per_dispatch,
            self.accumulation_steps,
            self.microbatch_size,
            self.validation_microbatch_seqs,
        )

    def to_dict(self) -> dict:
        """Return nested plain values, as they are written to plan.json."""
        values = dataclasses.asdict(self)
        later = [stage.to_dict() for stage in self.later]
        return values | {"weight_decay_timescale_frac": self.weight_decay_timescale_frac, "later": later}


def data_spec(config: Config) -> DataSpec:
    """Return what `data.prepare` is told."""
    names = [field.name for field in dataclasses.fields(DataSpec)]
    return DataSpec(**{name: config.data[name] for name in names})


def make(config: Config, *, vocab_size: int, devices: DeviceSpec) -> Plan:
    """Return the plan of a validated config on these devices. Raises UserError for what they cannot do."""
    train, platform = config.train, devices.platform
    parts = stages(train.batch_size, train.batch_size_schedule, config.model.context_tokens, train.budget_tokens)
    shared = math.gcd(*(stage.batch_size for stage in parts))
    mesh = layout.mesh(config, train.microbatch_size or shared, devices)
    microbatch = train.microbatch_size or layout.microbatch_size(mesh, shared, platform)
    attention, attention_reason = layout.attention(config, mesh, devices)
    model = _model(config, vocab_size, attention)
    validation_batch_seqs = _validation_batch_seqs(model, mesh)
    has_parts = microbatch < min(stage.batch_size for stage in parts) or mesh.data_groups > 1
    flops_per_token = flops.train_flops_per_token(model)
    budget_tokens = hyperparameters.budget_tokens(config)
    stage_hyperparams = [hyperparameters.hyperparams(config, stage) for stage in parts]
    averages = hyperparameters.averages(config, parts[0])
    first, *later = [
        Plan(
            fingerprint=fingerprint(config),
            model=model,
            data=data_spec(config),
            optimizer=_optimizer(config, has_parts),
            mesh=mesh,
            platform=platform,
            attention_reason=attention_reason,
            hyperparams=hyperparams,
            averages=hyperparameters.averages(config, stage),
            transfer=hyperparameters.transfer_words(config),
            seed=train.seed,
            shuffle_seed=config.data.shuffle_seed,
            first_step=stage.first_step,
            last_step=stage.last_step,
            first_tokens=stage.first_tokens,
            batch_size=stage.batch_size,
            microbatch_size=train.microbatch_size or layout.microbatch_size(mesh, stage.batch_size, platform),
            tokens_per_step=stage.batch_size * model.context_tokens,
            asked_budget_tokens=train.budget_tokens,
            budget_tokens=budget_tokens,
            optimizer_steps=parts[-1].last_step,
            warmup_tokens=hyperparameters.warmup_tokens(config),
            steps_per_dispatch=train.steps_per_dispatch
            or _steps_per_dispatch(flops_per_token * stage.batch_size * model.context_tokens, platform),
            log_every_steps=_every(train.log_every_tokens, stage.batch_size * model.context_tokens),
            validate_every_steps=train.validate_every_tokens
            and _every(train.validate_every_tokens, stage.batch_size * model.context_tokens),
            validation_batch_seqs=validation_batch_seqs,
            validation_microbatch_seqs=layout.microbatch_size(mesh, validation_batch_seqs, platform),
            diverged_above_start_nats=train.diverged_above_start_nats,
            non_embedding_params=flops.non_embedding_params(model),
            active_params=flops.active_params(model),
            params=flops.total_params(model),
            flops_per_token=flops_per_token,
            flops=float(flops_per_token) * budget_tokens,
            first_learning_rates=hyperparameters.first_rates(config.optimizer.schedule, hyperparams, stage),
            warnings=hyperparameters.warnings(config, averages),
        )
        for stage, hyperparams in zip(parts, stage_hyperparams, strict=True)
    ]
    return replace(first, later=tuple(later))


def _optimizer(config: Config, has_parts: bool) -> OptimizerSpec:
    optimizer = config.optimizer
    return OptimizerSpec(
        optimizer.name,
        optimizer.schedule,
        nesterov=optimizer.nesterov,
        muon_heads=optimizer.muon_matrices == "heads",
        clip=optimizer.clip_norm is not None,
        stochastic_rounding=optimizer.rounding == "stochastic",
        weight_average=(optimizer.weight_average_b, optimizer.weight_average_tokens) != (None, None),
        diagnostics=("parts" if has_parts else "successive") if config.train.diagnostics else "off",
    )


def _model(config: Config, vocab_size: int, attention: str) -> ModelSpec:
    values = dict(config.model.to_dict())
    values["ffn_width"] = values["ffn_width"] or 4 * values["width"]
    values["attention"] = attention
    return ModelSpec(vocab_size=vocab_size, **values)


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
