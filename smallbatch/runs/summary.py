"""What a person reads before and after a run: the plan and the result, as plain text."""

from pathlib import Path

from smallbatch.optim import OPTIMIZERS
from smallbatch.plan.plan import Plan, Stage
from smallbatch.runs.progress import format_bytes, format_count, format_secs
from smallbatch.runs.records import Result


def plan_text(plan: Plan, dataset_tokens: int | None) -> str:
    """Return the plan in lines; `dataset_tokens` is None where the dataset is not prepared yet."""
    m, first, later = plan.model, plan.first, plan.stages[1:]
    h = first.hyperparams
    rows = [
        ("model", f"{m.layers} layers, width {m.width}, {m.heads} heads of {m.head_width}, MLP {m.ffn_width}, "
         f"context {m.context_tokens}, vocabulary {m.vocab_size:,}"),
        ("parameters", f"{plan.params:,} in all; {plan.active_params:,} in matrix products; "
         f"{plan.non_embedding_params:,} without embeddings"),
        ("precision", f"parameters {m.param_dtype}, computation {m.compute_dtype}"
         f"{f', its products {m.matmul_precision}' if m.compute_dtype == 'float32' else ''}; remat {m.remat}"),
        ("attention", f"{m.attention}: {plan.attention_reason}"),
        *[(f"batch{f' from {s.first_tokens:,}' if s.first_tokens else ''}", _batch(plan, s)) for s in plan.stages],
        ("devices", f"{plan.mesh.devices} {plan.platform}: {plan.mesh}"),
        ("budget", f"{plan.budget_tokens:,} tokens = {plan.optimizer_steps:,} steps{_rounded_up(plan)}; "
         f"{plan.flops:.3g} FLOPs ({plan.flops_per_token:,} a token)"),
        ("epochs", _epochs(plan, dataset_tokens)),
        ("optimizer", _optimizer(plan)),
        *[(f"from {s.first_tokens:,}", f"peak learning rate {s.hyperparams['peak_lr']:g}; {_kept(s)}") for s in later],
        *_extras(plan),
        *([("transferred", plan.transfer)] if plan.transfer else []),
        ("schedule", f"{plan.optimizer.schedule} to {h['final_lr_frac']:g} x peak after a warm-up of "
         f"{plan.warmup_tokens:,.0f} tokens = {h['warmup_steps']:,.1f} steps = "
         f"{plan.warmup_tokens / plan.budget_tokens:.1%} of the run; at the midpoint of each update, first "
         f"{', '.join(f'{rate:.3g}' for rate in first.first_learning_rates)}"),
        *[(a.name, f"{1 - a.one_minus_b:.7g} a step (1 - {a.name} = {a.one_minus_b:.4g}): half-life "
           f"{a.half_life_tokens:,.0f} tokens = {a.half_life_steps:,.1f} steps = {a.half_life_frac:.2%} of the run")
          for a in first.averages],
        ("every", f"record {first.log_every_steps:,} steps, validation "
         f"{f'{first.validate_every_steps:,} steps' if first.validate_every_steps else 'at the end'}, "
         f"dispatch up to {first.steps_per_dispatch} steps"),
        ("fingerprint", plan.fingerprint[:12]),
    ]  # fmt: skip
    return "\n".join([_table(rows), *warning_lines(plan)])


def warning_lines(plan: Plan) -> list[str]:
    """Return one line per warning of a plan."""
    return [f"warning: {words}" for words in plan.warnings]


def _rounded_up(plan: Plan) -> str:
    if plan.budget_tokens == plan.asked_budget_tokens:
        return ""
    return f" (train.budget_tokens={plan.asked_budget_tokens:,}, rounded up to whole updates)"


def _kept(stage: Stage) -> str:
    names = [average.name for average in stage.averages]
    per_step = "b1" in names and stage.hyperparams["b1_step_offset"] != stage.hyperparams["step_offset"]
    in_tokens = [name for name in names if not (per_step and name == "b1")]
    if not names:
        return "no averages to keep"
    parts = ["b1 stays per step"] * per_step + [f"half-lives of {', '.join(in_tokens)} stay in tokens"] * bool(
        in_tokens
    )
    return ", ".join(parts)


def start_text(plan: Plan, dataset_tokens: int, processes: int, device_kind: str) -> str:
    """Return the first line that a run prints, and its warnings; `device_kind` is JAX's name for the devices."""
    steps, devices = plan.optimizer_steps, plan.mesh.devices
    line = (
        f"{format_count(plan.params)} parameters, {plan.optimizer.name}, batch {plan.first.batch_size} x "
        f"{plan.model.context_tokens} tokens, {steps:,} update{'s' * (steps != 1)} on {devices} {plan.platform} "
        f"device{'s' * (devices != 1)}{f' ({device_kind})' if device_kind != plan.platform else ''}"
        f"{f' in {processes} processes' if processes > 1 else ''}; epochs: {_epochs(plan, dataset_tokens)}"
    )
    return "\n".join([line, *warning_lines(plan)])


def dry_run_text(found) -> str:
    """Return what a dry run finds (a `training.run.DryRun`)."""
    parts = [plan_text(found.plan, found.dataset_tokens), *found.dataset_lines, memory_text(found.memory)]
    if found.plan.mesh.devices > 1:
        parts.append(traffic_text(found.traffic))
    return "\n".join(parts)


def traffic_text(traffic) -> str:
    """Return what devices send each other in an update (`training.collectives.Traffic`s)."""
    total = sum(row.sent_bytes for row in traffic)
    rows = [
        (
            row.kind,
            f"{row.count:,} times, {format_bytes(row.sent_bytes)}; the largest of {format_bytes(row.largest_bytes)}",
        )
        for row in traffic
    ]
    rows.append(("total", f"{format_bytes(total)} sent by each device in an update"))
    return "communication, from the compiled program:\n" + _table(rows)


def memory_text(memory) -> str:
    """Return the compiled chunk's memory on one device (a `training.programs.Memory`)."""
    rows = [
        ("parameters", format_bytes(memory.params_bytes)),
        ("optimizer", format_bytes(memory.optimizer_state_bytes)),
        ("temporary", f"{format_bytes(memory.temporary_bytes)} for gradients, activations and scratch at their peak "
         f"({memory.temporary_bytes / memory.params_bytes:.2f} of the parameters)"),
        ("tokens", format_bytes(memory.batch_bytes)),
        ("total", f"{format_bytes(memory.total_bytes)} on each device"),
    ]  # fmt: skip
    return "memory, from the compiled program:\n" + _table(rows)


def result_text(result: Result, path: Path) -> str:
    """Return a run's result in lines, the sampled text last."""
    rows = [("status", _status(result))]
    if result.validation_loss_nats is not None:
        bits = "" if result.bits_per_byte is None else f"   {result.bits_per_byte:.4f} bits/byte"
        perplexity = "" if result.perplexity is None else f"   perplexity {result.perplexity:.3f}"
        rows += [("validation", f"{result.validation_loss_nats:.4f} nats/token{bits}{perplexity}")]
    speed = "" if result.tokens_per_sec is None else f"{format_count(result.tokens_per_sec)} tokens/s in training; "
    if result.mfu is not None:
        speed = f"{speed[:-2]} ({result.mfu:.0%} MFU); "
    rows += [
        ("training", f"{result.tokens:,} tokens, {result.optimizer_steps:,} steps of {result.batch_size} sequences, "
         f"{result.flops:.4g} FLOPs, {speed}{format_secs(result.secs)} in all"),
        ("files", str(path)),
    ]  # fmt: skip
    text = _table(rows)
    if result.sample is not None:
        text += "\nsample\n" + "\n".join(f"    {line}" for line in result.sample.splitlines())
    return text


def _status(result: Result) -> str:
    if result.status == "diverged":
        return f"diverged at step {result.diverged_at_step:,}; lower the learning rate"
    if result.status == "stopped":
        return "stopped and saved; the same command goes on"
    return result.status


def _optimizer(plan: Plan) -> str:
    h = plan.first.hyperparams
    keys = OPTIMIZERS[plan.optimizer.name].hyperparams
    embed = f" ({h['peak_lr'] * h['embed_lr_ratio']:g} for embeddings and output)" if "embed_lr" in keys else ""
    eps = f", eps {h['eps']:g}" if "eps" in keys else ""
    nesterov = " with Nesterov's look ahead" if plan.optimizer.nesterov else ""
    decay = f"weight decay {h['weight_decay']:g}"
    if plan.weight_decay_timescale_frac is not None:
        decay += f", which forgets in 1/(lr wd) steps = {plan.weight_decay_timescale_frac:.2%} of the run at the peak"
    return f"{plan.optimizer.name}{nesterov}, peak learning rate {h['peak_lr']:g}{embed}{eps}, {decay}"


def _extras(plan: Plan) -> list[tuple[str, str]]:
    o, rows = plan.optimizer, []
    if o.clip:
        rows += [
            (
                "clipping",
                f"gradients of a norm above {plan.first.hyperparams['clip_norm']:g}; a full set of them is kept for it",
            )
        ]
    if o.stochastic_rounding:
        rows += [("rounding", "of parameters: stochastic, unbiased")]
    if o.diagnostics != "off":
        source = {"parts": "the parts of each batch", "successive": "successive gradients, of which one set is kept"}
        rows += [("diagnostics", f"noise scale from {source[o.diagnostics]}; keeps all gradients and the last update")]
    return rows


def _batch(plan: Plan, stage: Stage) -> str:
    text = f"{stage.batch_size} sequences = {stage.tokens_per_step:,} tokens an update"
    if (
        stage.accumulation_steps > 1
        and plan.platform == "cpu"
        and stage.microbatch_size == plan.mesh.data * plan.mesh.fsdp
    ):
        text += f", a sequence a device at a time ({stage.accumulation_steps} micro-batches, for speed)"
    elif stage.accumulation_steps > 1:
        text += (
            f", in {stage.accumulation_steps} micro-batches of {stage.microbatch_size} whose gradients are kept and "
            "summed; small batches without accumulation usually learn more per FLOP"
        )
    return text


def _epochs(plan: Plan, dataset_tokens: int | None) -> str:
    if dataset_tokens is None:
        return "unknown until the dataset is prepared"
    epochs = plan.budget_tokens / dataset_tokens
    if epochs > 1:
        return f"{epochs:.2f}: beyond one epoch of {dataset_tokens:,} training tokens; sequences repeat, reshuffled"
    return f"{epochs:.2f} of {dataset_tokens:,} training tokens"


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"  {name:<{width}}{text}" for name, text in rows)
