"""Train one run, from its config to result.json: prepare the data, plan, train, sample, write the result."""

import contextlib
import datetime
import itertools
import json
import math
import resource
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax

from smallbatch import config as configs
from smallbatch.data import prepare, tokenizers
from smallbatch.data.dataset import Dataset
from smallbatch.data.stream import check_splits, describe_splits
from smallbatch.errors import UserError
from smallbatch.files import paths
from smallbatch.plan import device_flops, mesh_plan
from smallbatch.plan import plan as plans
from smallbatch.runs import records, summary, trackers
from smallbatch.runs import run_dir as workdirs
from smallbatch.runs.progress import log
from smallbatch.training import cloud, distributed, sharding
from smallbatch.training.jax_setup import cpu_cores, start_jax
from smallbatch.training.program import Memory, memory_error, train_program
from smallbatch.training.signals import Stop
from smallbatch.training.traffic import Traffic
from smallbatch.training.trainer import Outcome, Run, Trainer

MAX_EXP = 709.0  # exp of a larger number overflows float64
_runs_of_process = itertools.count()


class Interrupted(KeyboardInterrupt):
    """Raised once a run is saved after a signal, a notebook's stop button or a preemption notice."""

    def __init__(self, result: records.Result, noticed: bool = False):
        resume = "; call it again to resume" if result.status == "stopped" else ""
        super().__init__(f"{result.status} and saved after update {result.optimizer_steps:,}{resume}")
        self.result = result
        self.noticed = noticed  # by a preemption notice, so the run should be restarted


def train(config: configs.Config, path: str | Path | None = None, until_tokens: int | None = None) -> records.Result:
    """Train or resume a run, and return its result, which also gives the loss curves.

    Args:
        path: run directory; unset: runs/quickstart-FINGERPRINT, as for the command without a config file.
        until_tokens: validate, save and stop at this token count. The same call without it resumes.

    Raises:
        UserError: the config, the data, the devices or the directory do not allow the run.
        Interrupted: a KeyboardInterrupt, after SIGTERM or Ctrl-C, once the run is saved.
    """
    configs.validate(config)
    path = workdirs.default_path(config, None) if path is None else paths.local(path, "the run directory")
    workdir = workdirs.RunDir(path)
    workdirs.check_owner(workdir, config)
    if (result := workdirs.finished(workdir)) is not None:
        return result
    started, stop = now(), Stop()
    plan = make_plan(config)  # before the data is prepared, so that device-dependent errors come first
    with contextlib.ExitStack() as held:
        held.enter_context(cloud.PreemptionWatcher(partial(_stop_on_notice, stop)))  # also during data preparation
        held.enter_context(distributed.only_first_prints())
        _check_same_in_all_processes(plan, config, path)
        distributed.broadcast_from_first(lambda: held.enter_context(workdirs.locked(workdir, config)))
        dataset = prepare.prepare(plan.data)
        distributed.check_same(dataset.meta.sha256, "the prepared dataset")
        check_splits(dataset, plan.model.context_tokens)
        tokenizer = tokenizers.load(dataset.dir)
        prompt = prompt_ids(plan, tokenizer, config.train.sample_prompt, config.train.sample_tokens)
        open_trackers = partial(_open_trackers, workdir, config, plan)
        run = Run(plan, workdir, open_trackers)
        trainer = Trainer([run], dataset, workdir.checkpoints, config.train.checkpoint_every_secs, stop)
        trainer.restore()  # raises for another dataset, before anything in the run directory is overwritten
        distributed.broadcast_from_first(lambda: describe(workdir, config, plan, tokenizer))
        for line in describe_splits(dataset, plan.model.context_tokens):
            log(line)
        log(summary.start_text(plan, len(dataset.train), jax.process_count(), jax.local_devices()[0].device_kind))
        alone = next(_runs_of_process) == 0
        outcome = trainer.run(None if until_tokens is None else plan.step_at(until_tokens))[0]
        sample = None
        if outcome.status == "done" and prompt:
            sample = _sample(plan, trainer, tokenizer, prompt, config.train)
        result = result_of(plan, dataset, outcome, sample, started, plan.mesh.devices, alone)
        if distributed.is_first():
            records.write_result(workdir.result, result)
    result = replace(result, directory=workdir.path)
    if outcome.stopped or outcome.noticed:
        raise Interrupted(result, outcome.noticed)
    return result


def _open_trackers(
    workdir: workdirs.RunDir, config: configs.Config, plan: plans.Plan, resumed_tokens: int
) -> list[trackers.Tracker]:
    return trackers.open_trackers(
        workdir.path,
        **config.records.to_dict(),
        run_id=plan.fingerprint[:12],
        config=configs.resolved(config),
        resumed_tokens=resumed_tokens,
    )


def _check_same_in_all_processes(plan: plans.Plan, config: configs.Config, path: Path) -> None:
    # The fingerprint excludes the mesh and the sample, which must be the same too.
    given = (plan.fingerprint, config.mesh.to_dict(), config.train.sample_tokens, str(path))
    distributed.check_same(json.dumps(given), "the config or --workdir")


def describe(workdir: workdirs.RunDir, config: configs.Config, plan: plans.Plan, tokenizer) -> None:
    """Write config.json, plan.json and the tokenizer of a run into its directory."""
    workdirs.write_config(workdir, config)
    records.write_json(workdir.plan, plan.to_dict())
    if tokenizer is not None:
        try:
            workdir.tokenizer.mkdir(exist_ok=True)
            tokenizer.save(workdir.tokenizer)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write {workdir.tokenizer}: {reason}; free some space") from error


def _stop_on_notice(stop: Stop, notice: str) -> None:
    stop.request(notice)
    log(f"this machine is about to be preempted ({notice}): saving")


@dataclass(frozen=True)
class DryRun:
    """The plan, memory and communication of a run, computed without training."""

    plan: plans.Plan
    memory: Memory  # of the stage that needs the most
    traffic: tuple[Traffic, ...]  # in an update of that stage
    dataset_tokens: int | None  # None: the dataset is not prepared yet
    dataset_lines: tuple[str, ...] = ()  # sizes of its splits


def dry_run(config: configs.Config, topology: str | None = None) -> DryRun:
    """Compile the programs of a config, for these devices or the TPUs of a topology. Writes nothing."""
    plan = make_plan(config, topology)
    dataset = prepare.lookup(plan.data)
    lines = []
    if dataset is not None:
        check_splits(dataset, plan.model.context_tokens)
        lines = describe_splits(dataset, plan.model.context_tokens)
    programs = [train_program(replace(plan.program(stage), topology=topology)) for stage in plan.stages]
    largest = max(programs, key=lambda program: program.memory().total_bytes)
    tokens = None if dataset is None else len(dataset.train)
    return DryRun(plan, largest.memory(), largest.traffic(), tokens, tuple(lines))


def make_plan(config: configs.Config, topology: str | None = None) -> plans.Plan:
    """Start JAX and return the plan of a config on its devices, or on the TPUs of a topology.

    Raises UserError if the devices cannot run it.
    """
    configs.validate(config)
    if topology is not None:
        jax.config.update("jax_platforms", "cpu")  # the local devices are not used
    devices = start_jax(mesh_plan.cpu_devices(config, cpu_cores()), config.data.cache_dir)
    if topology is not None:
        devices = sharding.slice_spec(topology)
    vocab_size = prepare.vocab_size(plans.data_spec(config))
    plan = plans.make(config, vocab_size=vocab_size, devices=devices)
    if topology is not None:
        return plan
    idle = set(range(jax.process_count())) - {device.process_index for device in jax.devices()[: plan.mesh.devices]}
    if idle:
        mesh = plan.mesh
        raise UserError(
            f"the mesh of {mesh.devices} devices ({mesh}) has none of process "
            f"{', '.join(map(str, sorted(idle)))}; there are {devices.count} devices in {jax.process_count()} "
            "processes. Use a larger batch size, mesh.fsdp, mesh.tensor or mesh.sequence, or fewer processes"
        )
    return plan


def prompt_ids(plan: plans.Plan, tokenizer, prompt: str, new_tokens: int) -> list[int]:
    """Return the token ids of the sample's prompt; [] for no sample. Raises UserError if it exceeds the context."""
    if tokenizer is None or not new_tokens:
        return []
    ids = tokenizer.encode_batch([prompt])[0].tolist()
    if len(ids) > plan.model.context_tokens:
        raise UserError(
            f"train.sample_prompt has {len(ids)} tokens, but the context has {plan.model.context_tokens}; shorten it, "
            "or set train.sample_tokens=0"
        )
    return ids


def _sample(plan: plans.Plan, trainer: Trainer, tokenizer, prompt: list[int], train) -> str | None:
    """Return the prompt and its continuation; None if the gathered weights do not fit one device."""
    from smallbatch.model.sampling import generate

    try:
        ids = generate(
            plan.model,
            jax.tree.map(lambda x: x.addressable_data(0), trainer.gathered_params()),
            prompt,
            train.sample_tokens,
            temperature=0.8,
            top_p=0.95,
            key=jax.random.key(plan.seed),
            end_id=tokenizer.eod_id,
        )
    except jax.errors.JaxRuntimeError as error:
        if not memory_error(error):
            raise
        log("no text is sampled: the gathered weights do not fit one device; set train.sample_tokens=0")
        return None
    return train.sample_prompt + tokenizer.decode(ids)


def result_of(
    plan: plans.Plan,
    dataset: Dataset,
    outcome: Outcome,
    sample: str | None,
    started: str,
    devices: int,
    alone: bool,
) -> records.Result:
    """Return the content of result.json.

    devices: number of devices on which the outcome's seconds were measured. alone: whether this process trained no
    other run, so that the peak memory of the process is that of the run.
    """
    device, score = jax.local_devices()[0], outcome.score
    tokens = plan.tokens_at(outcome.step)
    tokens_per_sec = tokens / outcome.train_secs if outcome.train_secs > 0 else None
    return records.Result(
        status=outcome.status,
        validation_loss_nats=score.loss_nats if score else None,
        bits_per_byte=score.bits_per_byte if score else None,
        perplexity=math.exp(score.loss_nats) if score and score.loss_nats < MAX_EXP else None,
        average_validation_loss_nats=score.average_loss_nats if score else None,
        validation_loss_se_nats=score.loss_se_nats if score else None,
        train_loss_nats=outcome.train_loss_nats,
        tokens=tokens,
        flops=float(tokens * plan.flops_per_token),
        tokens_per_sec=tokens_per_sec,
        mfu=tokens_per_sec and device_flops.mfu(tokens_per_sec * plan.flops_per_token, device.device_kind, devices),
        optimizer_steps=outcome.step,
        secs=outcome.secs,
        peak_memory_bytes=_peak_memory_bytes(device) if alone else None,
        program_memory_bytes=outcome.program_memory_bytes,
        fingerprint=plan.fingerprint,
        dataset_sha256=dataset.meta.sha256,
        diverged_at_step=outcome.step if outcome.status == "diverged" else None,
        sample=sample,
        params=plan.params,
        seed=plan.seed,
        batch_size=plan.first.batch_size,
        device={"platform": device.platform, "kind": device.device_kind, "count": plan.mesh.devices},
        started=started,
        finished=now(),
        **records.environment(),
    )


def _peak_memory_bytes(device) -> int | None:
    """Return the peak memory of the first accelerator, or of this process on a CPU."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("peak_bytes_in_use")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def now() -> str:
    """Return the time in the format of results: ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
