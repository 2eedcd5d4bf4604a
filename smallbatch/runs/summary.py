"""The text printed before and after a run: the plan, its memory and communication, and the result."""

from pathlib import Path

from smallbatch.optim import OPTIMIZERS
from smallbatch.plan.plan import Plan, Stage
from smallbatch.runs.progress import format_bytes, format_count, format_secs
from smallbatch.runs.records import Result

Rows = list[tuple[str, str]]


def plan_text(plan: Plan, dataset_tokens: int | None) -> str:
    """Return the plan as a table, and its warnings. dataset_tokens: None if the dataset is not prepared yet."""
    rows = [
        *_model_rows(plan),
        *[(f"batch{f' from {s.first_tokens:,}' if s.first_tokens else ''}", _batch(plan, s)) for s in plan.stages],
        ("devices", f"{plan.mesh.devices} {plan.platform}: {plan.mesh}"),
        ("budget", _budget(plan)),
        ("epochs", _epochs(plan, dataset_tokens)),
        ("optimizer", _optimizer(plan)),
        *[
            (f"from {s.first_tokens:,}", f"peak learning rate {s.hyperparams['peak_lr']:g}; {_constant_rates(s)}")
            for s in plan.stages[1:]
        ],
        *_optional_rows(plan),
        ("schedule", _schedule(plan)),
        *[(average.name, _average(average)) for average in plan.first.averages],
        ("every", _intervals(plan.first)),
        ("fingerprint", plan.fingerprint[:12]),
    ]
    return "\n".join([_table(rows), *_warnings(plan)])


def start_text(plan: Plan, dataset_tokens: int, processes: int, device_kind: str) -> str:
    """Return the first line that a run prints, and its warnings. device_kind: JAX's name for the devices."""
    kind = f" ({device_kind})" if device_kind != plan.platform else ""
    processes_text = f" in {processes} processes" if processes > 1 else ""
    line = (
        f"{format_count(plan.params)} parameters, {plan.optimizer.name}, batch {plan.first.batch_size} x "
        f"{plan.model.context_tokens} tokens, {_count(plan.optimizer_steps, 'update')} on "
        f"{_count(plan.mesh.devices, f'{plan.platform} device')}{kind}{processes_text}; "
        f"epochs: {_epochs(plan, dataset_tokens)}"
    )
    return "\n".join([line, *_warnings(plan)])


def dry_run_text(found) -> str:
    """Return the result of a dry run (a `training.run.DryRun`)."""
    parts = [plan_text(found.plan, found.dataset_tokens), *found.dataset_lines, _memory(found.memory)]
    if found.plan.mesh.devices > 1:
        parts.append(_communication(found.traffic))
    return "\n".join(parts)


def result_text(result: Result, path: Path) -> str:
    """Return a run's result as a table, followed by the sampled text."""
    rows = [("status", _status(result))]
    if result.validation_loss_nats is not None:
        bits = "" if result.bits_per_byte is None else f"   {result.bits_per_byte:.4f} bits/byte"
        perplexity = "" if result.perplexity is None else f"   perplexity {result.perplexity:.3f}"
        rows.append(("validation", f"{result.validation_loss_nats:.4f} nats/token{bits}{perplexity}"))
    mfu = "" if result.mfu is None else f" ({result.mfu:.0%} MFU)"
    speed = (
        "" if result.tokens_per_sec is None else f"{format_count(result.tokens_per_sec)} tokens/s in training{mfu}, "
    )
    steps = f"{result.tokens:,} tokens, {result.optimizer_steps:,} steps of {result.batch_size} sequences"
    rows.append(("training", f"{steps}, {result.flops:.4g} FLOPs, {speed}{format_secs(result.secs)} in total"))
    rows.append(("files", str(path)))
    text = _table(rows)
    if result.sample is not None:
        text += "\nsample\n" + "\n".join(f"    {line}" for line in result.sample.splitlines())
    return text


def _table(rows: Rows) -> str:
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"  {name:<{width}}{text}" for name, text in rows)


def _warnings(plan: Plan) -> list[str]:
    return [f"warning: {text}" for text in plan.warnings]


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _model_rows(plan: Plan) -> Rows:
    m = plan.model
    precision = f" with {m.matmul_precision} matrix products" if m.compute_dtype == "float32" else ""
    shape = f"{m.layers} layers, width {m.width}, {m.heads} heads of {m.head_width}, MLP {m.ffn_width}"
    counts = f"{plan.params:,} in total; {plan.active_params:,} in matrix products"
    return [
        ("model", f"{shape}, context {m.context_tokens}, vocabulary {m.vocab_size:,}"),
        ("parameters", f"{counts}; {plan.non_embedding_params:,} without embeddings"),
        ("precision", f"parameters {m.param_dtype}, computation {m.compute_dtype}{precision}; remat {m.remat}"),
        ("attention", f"{m.attention}: {plan.attention_reason}"),
    ]


def _batch(plan: Plan, stage: Stage) -> str:
    text = f"{stage.batch_size} sequences = {stage.tokens_per_step:,} tokens per update"
    microbatches = stage.accumulation_steps
    if microbatches == 1:
        return text
    if plan.platform == "cpu" and stage.microbatch_size == plan.mesh.data * plan.mesh.fsdp:
        return f"{text}, in {microbatches} micro-batches of one sequence per device, which is faster on CPUs"
    return (
        f"{text}, in {microbatches} micro-batches of {stage.microbatch_size} with gradient accumulation; "
        "small batches without accumulation usually learn more per FLOP"
    )


def _budget(plan: Plan) -> str:
    rounded = f" (train.budget_tokens={plan.asked_budget_tokens:,}, rounded up to whole updates)"
    rounded = "" if plan.budget_tokens == plan.asked_budget_tokens else rounded
    flops = f"{plan.flops:.3g} FLOPs ({plan.flops_per_token:,} per token)"
    return f"{plan.budget_tokens:,} tokens = {plan.optimizer_steps:,} steps{rounded}; {flops}"


def _epochs(plan: Plan, dataset_tokens: int | None) -> str:
    if dataset_tokens is None:
        return "unknown until the dataset is prepared"
    epochs = plan.budget_tokens / dataset_tokens
    if epochs > 1:
        return f"{epochs:.2f} of {dataset_tokens:,} training tokens; sequences repeat, reshuffled in each epoch"
    return f"{epochs:.2f} of {dataset_tokens:,} training tokens"


def _optimizer(plan: Plan) -> str:
    h = plan.first.hyperparams
    keys = OPTIMIZERS[plan.optimizer.name].hyperparams
    nesterov = " with Nesterov momentum" if plan.optimizer.nesterov else ""
    embed = f" ({h['peak_lr'] * h['embed_lr_ratio']:g} for embeddings and output)" if "embed_lr" in keys else ""
    eps = f", eps {h['eps']:g}" if "eps" in keys else ""
    decay = f"weight decay {h['weight_decay']:g}"
    if plan.weight_decay_timescale_frac is not None:
        decay += f", with a timescale 1/(lr wd) of {plan.weight_decay_timescale_frac:.2%} of the run at the peak"
    return f"{plan.optimizer.name}{nesterov}, peak learning rate {h['peak_lr']:g}{embed}{eps}, {decay}"


def _constant_rates(stage: Stage) -> str:
    """Describe which decay rates stay constant when the batch size changes."""
    names = [average.name for average in stage.averages]
    if not names:
        return "no averages"
    per_step = "b1" in names and stage.hyperparams["b1_step_offset"] != stage.hyperparams["step_offset"]
    in_tokens = ", ".join(name for name in names if not (per_step and name == "b1"))
    parts = ["b1 stays constant per step"] if per_step else []
    parts += [f"half-lives of {in_tokens} stay constant in tokens"] if in_tokens else []
    return ", ".join(parts)


def _optional_rows(plan: Plan) -> Rows:
    o, rows = plan.optimizer, []
    if o.clip:
        norm = f"{plan.first.hyperparams['clip_norm']:g}"
        rows.append(("clipping", f"gradient norms above {norm}; needs memory for all gradients"))
    if o.stochastic_rounding:
        rows.append(("rounding", "parameters are rounded stochastically, without bias"))
    if o.diagnostics != "off":
        sources = {"parts": "the parts of each batch", "successive": "successive gradients"}
        needs = "needs memory for all gradients and the last update"
        rows.append(("diagnostics", f"noise scale from {sources[o.diagnostics]}; {needs}"))
    if plan.transfer:
        rows.append(("transferred", plan.transfer))
    return rows


def _schedule(plan: Plan) -> str:
    warmup = f"{plan.warmup_tokens:,.0f} tokens = {plan.first.hyperparams['warmup_steps']:,.1f} steps"
    rates = ", ".join(f"{rate:.3g}" for rate in plan.first.first_learning_rates)
    final = f"{plan.first.hyperparams['final_lr_frac']:g} x peak"
    return (
        f"{plan.optimizer.schedule} to {final} after a warm-up of {warmup} = "
        f"{plan.warmup_tokens / plan.budget_tokens:.1%} of the run; first learning rates, at the "
        f"midpoint of each update: {rates}"
    )


def _average(average) -> str:
    half_life = f"{average.half_life_tokens:,.0f} tokens = {average.half_life_steps:,.1f} steps"
    return (
        f"{1 - average.one_minus_b:.7g} per step (1 - {average.name} = {average.one_minus_b:.4g}): half-life "
        f"{half_life} = {average.half_life_frac:.2%} of the run"
    )


def _intervals(stage: Stage) -> str:
    validation = f"{stage.validate_every_steps:,} steps" if stage.validate_every_steps else "at the end"
    dispatch = f"dispatch up to {stage.steps_per_dispatch} steps"
    return f"record {stage.log_every_steps:,} steps, validation {validation}, {dispatch}"


def _memory(memory) -> str:
    """Return the compiled program's memory on one device (a `training.program.Memory`)."""
    share = memory.temporary_bytes / memory.params_bytes
    temporary = f"{format_bytes(memory.temporary_bytes)} for gradients, activations and scratch at their peak"
    rows = [
        ("parameters", format_bytes(memory.params_bytes)),
        ("optimizer", format_bytes(memory.optimizer_state_bytes)),
        ("temporary", f"{temporary} ({share:.2f} x the parameters)"),
        ("tokens", format_bytes(memory.batch_bytes)),
        ("total", f"{format_bytes(memory.total_bytes)} on each device"),
    ]
    return "memory, from the compiled program:\n" + _table(rows)


def _communication(traffic) -> str:
    """Return the bytes that devices exchange per update (`training.traffic.Traffic` objects)."""
    sizes = lambda row: f"{format_bytes(row.sent_bytes)}; largest {format_bytes(row.largest_bytes)}"
    rows = [(row.kind, f"{row.count:,} times, {sizes(row)}") for row in traffic]
    rows.append(("total", f"{format_bytes(sum(row.sent_bytes for row in traffic))} sent by each device per update"))
    return "communication, from the compiled program:\n" + _table(rows)


def _status(result: Result) -> str:
    if result.status == "diverged":
        return f"diverged at step {result.diverged_at_step:,}; lower the learning rate"
    if result.status == "stopped":
        return "stopped and saved; rerun the same command to resume"
    return result.status
