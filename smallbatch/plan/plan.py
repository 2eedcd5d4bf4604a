"""The plan of a run: every number derived from its config, in float64, before training."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from smallbatch.config import Config, fingerprint
from smallbatch.config.batch_schedule import ScheduleStage, stages, used_tokens
from smallbatch.plan import flops, hyperparameters, mesh_plan
from smallbatch.plan.hyperparameters import RunningAverage
from smallbatch.specs import DataSpec, DeviceSpec, MeshSpec, ModelSpec, OptimizerSpec, ProgramSpec

# A dispatch takes seconds on a CPU and about 0.1 s on an accelerator: long enough to hide its overhead (on a CPU, the
# system maps memory for the activations page by page), short enough for progress, checkpoints and signals.
DISPATCH_FLOPS = {"cpu": 5e11}
DISPATCH_FLOPS_ACCELERATOR = 2e13
MAX_STEPS_PER_DISPATCH = 64
VALIDATION_BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Stage(ScheduleStage):
    """A part of a run with a constant batch size, and everything that depends on that batch size."""

    microbatch_size: int  # sequences per forward pass
    tokens_per_step: int
    steps_per_dispatch: int
    log_every_steps: int
    validate_every_steps: int | None  # None: only at the end of the run
    hyperparams: dict[str, Any]  # the fields of optim.HyperParams
    averages: tuple[RunningAverage, ...]
    first_learning_rates: tuple[float, ...]  # of the first three updates

    @property
    def accumulation_steps(self) -> int:
        return self.batch_size // self.microbatch_size

    def tokens_at(self, step: int) -> int:
        """Return the tokens seen after `step` updates of the run; `step` lies in this stage."""
        return self.first_tokens + (step - self.first_step) * self.tokens_per_step


@dataclass(frozen=True)
class Plan:
    """A complete description of a run. A run is determined by its plan and its dataset."""

    fingerprint: str
    model: ModelSpec
    data: DataSpec
    optimizer: OptimizerSpec
    mesh: MeshSpec
    platform: str  # cpu | gpu | tpu
    attention_reason: str  # why this attention kernel was selected
    transfer: str | None  # the rule that set the hyperparameters, if they were tuned at another batch size
    seed: int
    shuffle_seed: int
    asked_budget_tokens: int
    budget_tokens: int  # train.budget_tokens, rounded up to whole updates
    optimizer_steps: int  # of the whole run
    warmup_tokens: float
    validation_batch_seqs: int
    validation_microbatch_seqs: int
    diverged_above_start_nats: float
    non_embedding_params: int
    active_params: int  # in matrix products
    params: int
    flops_per_token: int
    flops: float  # of the whole run
    warnings: tuple[str, ...]  # about allowed but probably unintended values; printed before the run
    stages: tuple[Stage, ...]  # several if the batch size changes during the run

    @property
    def first(self) -> Stage:
        """The stage at the start of the run; the only one unless the batch size changes."""
        return self.stages[0]

    @property
    def weight_decay_timescale_frac(self) -> float | None:
        """tau = B / (lr wd D) of AdamW at the peak, as a share of the run (Bergsma et al. 2025, arXiv 2505.13738)."""
        rate = self.first.hyperparams["peak_lr"] * self.first.hyperparams["weight_decay"]
        return 1 / (rate * self.optimizer_steps) if rate else None

    def stage_at(self, step: int) -> Stage:
        """Return the stage of the next update after `step` finished updates; the last stage at the end of the run."""
        return next((stage for stage in self.stages if step < stage.last_step), self.stages[-1])

    def tokens_at(self, step: int) -> int:
        """Return the tokens seen after `step` updates."""
        return self.stage_at(step).tokens_at(step)

    def step_at(self, tokens: int) -> int:
        """Return the smallest number of updates after which at least `tokens` tokens have been seen."""
        for stage in self.stages:
            step = stage.first_step + -(-(tokens - stage.first_tokens) // stage.tokens_per_step)
            if step <= stage.last_step:
                return max(step, stage.first_step)
        return self.optimizer_steps

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the next update after `step` finished updates."""
        stage = self.stage_at(step)
        return hyperparameters.learning_rates(self.optimizer.schedule, stage.hyperparams, step, 1)[0]

    def noise_scale_from(self, stage: Stage) -> str:
        """Return what the gradient noise scale is estimated from. It depends on the devices if `mesh.data` does."""
        if self.optimizer.diagnostics == "parts":
            return f"parts of {stage.microbatch_size // self.mesh.data_groups} sequences"
        return {"successive": "successive gradients", "off": "nothing"}[self.optimizer.diagnostics]

    def program(self, stage: Stage | None = None) -> ProgramSpec:
        """Return the specification of the compiled program of a stage, by default the first."""
        stage = stage or self.first
        return ProgramSpec(
            self.model,
            self.optimizer,
            self.mesh,
            self.platform,
            stage.steps_per_dispatch,
            stage.accumulation_steps,
            stage.microbatch_size,
            self.validation_microbatch_seqs,
        )

    def to_dict(self) -> dict:
        """Return nested plain values, as written to plan.json."""
        return dataclasses.asdict(self) | {"weight_decay_timescale_frac": self.weight_decay_timescale_frac}


def data_spec(config: Config) -> DataSpec:
    """Return the description of the dataset that `data.prepare` reads."""
    return DataSpec(**{field.name: config.data[field.name] for field in dataclasses.fields(DataSpec)})


def make(config: Config, *, vocab_size: int, devices: DeviceSpec) -> Plan:
    """Return the plan of a validated config on these devices. Raises UserError if the devices cannot run it."""
    train, context_tokens = config.train, config.model.context_tokens
    parts = stages(train.batch_size, train.batch_size_schedule, context_tokens, train.budget_tokens)
    shared_batch = math.gcd(*(part.batch_size for part in parts))
    mesh = mesh_plan.mesh(config, train.microbatch_size or shared_batch, devices)
    microbatch = train.microbatch_size or mesh_plan.microbatch_size(mesh, shared_batch, devices.platform)
    has_parts = microbatch < min(part.batch_size for part in parts) or mesh.data_groups > 1
    attention, attention_reason = mesh_plan.attention(config, mesh, devices)
    model = _model(config, vocab_size, attention)
    flops_per_token = flops.train_flops_per_token(model)
    budget_tokens = used_tokens(parts, context_tokens)
    validation_batch_seqs = _validation_batch_seqs(context_tokens, mesh)
    made = tuple(_stage(config, part, mesh, devices.platform, flops_per_token) for part in parts)
    return Plan(
        fingerprint=fingerprint(config),
        model=model,
        data=data_spec(config),
        optimizer=_optimizer(config, has_parts),
        mesh=mesh,
        platform=devices.platform,
        attention_reason=attention_reason,
        transfer=hyperparameters.transfer_text(config),
        seed=train.seed,
        shuffle_seed=config.data.shuffle_seed,
        asked_budget_tokens=train.budget_tokens,
        budget_tokens=budget_tokens,
        optimizer_steps=parts[-1].last_step,
        warmup_tokens=hyperparameters.warmup_tokens(config),
        validation_batch_seqs=validation_batch_seqs,
        validation_microbatch_seqs=mesh_plan.microbatch_size(mesh, validation_batch_seqs, devices.platform),
        diverged_above_start_nats=train.diverged_above_start_nats,
        non_embedding_params=flops.non_embedding_params(model),
        active_params=flops.active_params(model),
        params=flops.total_params(model),
        flops_per_token=flops_per_token,
        flops=float(flops_per_token) * budget_tokens,
        warnings=hyperparameters.warnings(config, made[0].averages),
        stages=made,
    )


def _stage(config: Config, part: ScheduleStage, mesh: MeshSpec, platform: str, flops_per_token: int) -> Stage:
    train, tokens_per_step = config.train, part.batch_size * config.model.context_tokens
    hyperparams = hyperparameters.hyperparams(config, part)
    rates = min(3, part.last_step - part.first_step)
    return Stage(
        **dataclasses.asdict(part),
        microbatch_size=train.microbatch_size or mesh_plan.microbatch_size(mesh, part.batch_size, platform),
        tokens_per_step=tokens_per_step,
        steps_per_dispatch=train.steps_per_dispatch or _steps_per_dispatch(flops_per_token * tokens_per_step, platform),
        log_every_steps=_every(train.log_every_tokens, tokens_per_step),
        validate_every_steps=train.validate_every_tokens and _every(train.validate_every_tokens, tokens_per_step),
        hyperparams=hyperparams,
        averages=hyperparameters.averages(config, part),
        first_learning_rates=hyperparameters.learning_rates(
            config.optimizer.schedule, hyperparams, part.first_step, rates
        ),
    )


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
    """Return an interval in steps, at least one."""
    return max(1, tokens // tokens_per_step)


def _validation_batch_seqs(context_tokens: int, mesh: MeshSpec) -> int:
    """Return the sequences of a validation batch: set by the context, rounded up to a multiple of the devices."""
    seqs = max(1, VALIDATION_BATCH_TOKENS // context_tokens)
    shards = mesh.data * mesh.fsdp
    return -(-seqs // shards) * shards
