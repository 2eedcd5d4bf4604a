"""A run from config to result.json: prepare the data, plan, train, sample, write down what came out."""

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
from smallbatch.data.shards import Dataset
from smallbatch.data.stream import check_splits, describe_splits
from smallbatch.errors import UserError
from smallbatch.files import paths
from smallbatch.plan import device_flops as peaks
from smallbatch.plan import mesh_plan as layout
from smallbatch.plan import plan as plans
from smallbatch.runs import records, summary, trackers
from smallbatch.runs import run_dir as workdirs
from smallbatch.runs.progress import log
from smallbatch.training import cloud, distributed, sharding
from smallbatch.training.program import Memory, Programs, compiled, cpu_cores, out_of_memory, start_jax
from smallbatch.training.signals import Stop
from smallbatch.training.traffic import Traffic
from smallbatch.training.trainer import Outcome, Trainer

_runs_of_process = itertools.count()


class Interrupted(KeyboardInterrupt):
    """SIGTERM, Ctrl-C or the stop button of a notebook, granted: the run is saved, and has this result."""

    def __init__(self, result: records.Result, noticed: bool = False):
        goes_on = "; call it again to resume" if result.status == "stopped" else ""
        super().__init__(f"{result.status} and saved after update {result.optimizer_steps:,}{goes_on}")
        self.result = result
        self.noticed = noticed  # by a notice of the cloud: nobody outside has asked for it


def train(config: configs.Config, path: str | Path | None = None, until_tokens: int | None = None) -> records.Result:
    """Train in a run directory, or go on where it stopped; return the result, which gives the curves too.

    path: unset: runs/quickstart-FINGERPRINT, as for the command without a config file.
    until_tokens: stop there as if told to, but with a validation: the same call without it goes on.

    Raises:
        UserError: the config, the data, the devices or the directory do not allow it.
        Interrupted: a KeyboardInterrupt, by SIGTERM or Ctrl-C, once the run is saved.
    """
    configs.validate(config)
    path = workdirs.default_path(config, None) if path is None else paths.local(path, "the run directory")
    workdir = workdirs.RunDir(path)
    workdirs.check_owner(workdir, config)
    if (result := workdirs.finished(workdir)) is not None:
        return result
    started, stop = now(), Stop()
    plan = make_plan(config)  # before the data: what the devices forbid is said before any long work
    with contextlib.ExitStack() as held:
        held.enter_context(cloud.PreemptionWatcher(partial(_stop_on_notice, stop)))  # also while data are prepared
        held.enter_context(distributed.only_first_prints())
        _check_same_in_all_processes(plan, config, path)
        distributed.broadcast_from_first(lambda: held.enter_context(workdirs.locked(workdir, config)))
        dataset = prepare.prepare(plan.data)
        distributed.check_same(dataset.meta.sha256, "the prepared dataset")
        check_splits(dataset, plan.model.context_tokens)
        tokenizer = tokenizers.load(dataset.dir)
        ids = prompt_ids(plan, tokenizer, config.train.sample_prompt, config.train.sample_tokens)
        programs = Programs(plan)
        programs.check_memory()
        trainer = Trainer(programs, dataset, workdir, config.train.checkpoint_every_secs, stop)
        state, saved = trainer.restore()  # refuses another dataset, so nothing of the run is overwritten before
        distributed.broadcast_from_first(lambda: _describe(workdir, config, plan, tokenizer))
        for line in describe_splits(dataset, plan.model.context_tokens):
            log(line)
        log(summary.start_text(plan, len(dataset.train), jax.process_count(), jax.local_devices()[0].device_kind))

        def open_trackers(resumed_tokens: int) -> list[trackers.Tracker]:
            return trackers.open_trackers(
                workdir.path,
                **config.records.to_dict(),
                run_id=plan.fingerprint[:12],
                config=configs.resolved(config),
                resumed_tokens=resumed_tokens,
            )

        until_step = plan.optimizer_steps if until_tokens is None else plan.step_at(until_tokens)
        alone = next(_runs_of_process) == 0
        outcome = trainer.run(state, saved, open_trackers, until_step)
        sample = None
        if outcome.status == "done" and ids:
            sample = _sample(plan, programs, outcome.params, tokenizer, ids, config.train)
        result = result_of(plan, dataset, outcome, sample, started, plan.mesh.devices, alone)
        if distributed.is_first():
            records.write_result(workdir.result, result)
    result = replace(result, directory=workdir.path)
    if outcome.stopped or outcome.noticed:
        raise Interrupted(result, outcome.noticed)
    return result


def _check_same_in_all_processes(plan: plans.Plan, config: configs.Config, path: Path) -> None:
    # The fingerprint leaves out the mesh and the sample, which must be the same too.
    given = (plan.fingerprint, config.mesh.to_dict(), config.train.sample_tokens, str(path))
    distributed.check_same(json.dumps(given), "the config or --workdir")


def _describe(workdir: workdirs.RunDir, config: configs.Config, plan: plans.Plan, tokenizer) -> None:
    """Write config.json, plan.json and the tokenizer, after all checks."""
    workdirs.write_config(workdir, config)
    records.write_json(workdir.plan, plan.to_dict())
    if tokenizer is not None:
        keep_tokenizer(tokenizer, workdir.tokenizer)


def _stop_on_notice(stop: Stop, words: str) -> None:
    stop.request(words)
    log(f"this machine is about to be taken away ({words}): saving")


@dataclass(frozen=True)
class DryRun:
    """What is known of a run before it starts."""

    plan: plans.Plan
    memory: Memory  # of the stage that needs most
    traffic: tuple[Traffic, ...]  # of an update of that stage
    dataset_tokens: int | None  # None: the dataset is not prepared yet
    dataset_lines: tuple[str, ...] = ()  # sizes of its splits


def dry_run(config: configs.Config, topology: str | None = None) -> DryRun:
    """Compile what a config runs, here or on TPUs of a topology, and return what that says. Writes nothing."""
    plan = make_plan(config, topology)
    dataset = prepare.lookup(plan.data)
    lines = []
    if dataset is not None:
        check_splits(dataset, plan.model.context_tokens)
        lines = describe_splits(dataset, plan.model.context_tokens)
    programs = [compiled(replace(stage.program, topology=topology)) for stage in (plan, *plan.later)]
    largest = max(programs, key=lambda program: program.memory().total_bytes)
    tokens = None if dataset is None else len(dataset.train)
    return DryRun(plan, largest.memory(), largest.traffic(), tokens, tuple(lines))


def make_plan(config: configs.Config, topology: str | None = None) -> plans.Plan:
    """Start JAX and return the plan of a config on its devices, or on TPUs that are not here.

    Raises UserError if it is not valid there.
    """
    configs.validate(config)
    if topology is not None:
        jax.config.update("jax_platforms", "cpu")  # whatever is here is not asked
    devices = start_jax(layout.cpu_devices(config, cpu_cores()), config.data.cache_dir)
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
            f"the mesh of {mesh.devices} devices ({mesh}) leaves process {', '.join(map(str, sorted(idle)))} without "
            f"work; there are {devices.count} devices in {jax.process_count()} processes: choose a larger batch, "
            "mesh.fsdp, mesh.tensor or mesh.sequence, or fewer processes"
        )
    return plan


def prompt_ids(plan: plans.Plan, tokenizer, prompt: str, new_tokens: int) -> list[int]:
    """Return the prompt of the text sampled at the end, [] for no sample; a bad one must not cost a finished run."""
    if tokenizer is None or not new_tokens:
        return []
    ids = tokenizer.encode_batch([prompt])[0].tolist()
    if len(ids) > plan.model.context_tokens:
        raise UserError(
            f"train.sample_prompt has {len(ids)} tokens and the context {plan.model.context_tokens}; shorten it, or "
            "set train.sample_tokens=0"
        )
    return ids


def keep_tokenizer(tokenizer, directory: Path) -> None:
    """Copy the tokenizer into the run directory, so that the run can write text without its corpus."""
    try:
        directory.mkdir(exist_ok=True)
        tokenizer.save(directory)
    except OSError as error:
        raise UserError(f"cannot write {directory}: {error.strerror or error}; free some space") from error


def _sample(plan: plans.Plan, programs: Programs, params, tokenizer, prompt_ids: list[int], train) -> str | None:
    """Return the prompt and its continuation; None where a device cannot hold the weights of all of them."""
    from smallbatch.model.sampling import generate

    try:
        ids = generate(
            plan.model,
            jax.tree.map(lambda x: x.addressable_data(0), programs.compiled.gathered(params)),
            prompt_ids,
            train.sample_tokens,
            temperature=0.8,
            top_p=0.95,
            key=jax.random.key(plan.seed),
            end_id=tokenizer.eod_id,
        )
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        log("no text is sampled: all weights together do not fit one device; train.sample_tokens=0 asks for none")
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

    devices: number of devices behind the outcome's seconds. alone: whether this process trained no other run.
    """
    device, score = jax.local_devices()[0], outcome.score
    tokens = plan.stage_at(outcome.step).tokens_at(outcome.step)
    tokens_per_sec = tokens / outcome.train_secs if outcome.train_secs > 0 else None
    return records.Result(
        status=outcome.status,
        validation_loss_nats=score.loss_nats if score else None,
        bits_per_byte=score.bits_per_byte if score else None,
        perplexity=_perplexity(score.loss_nats) if score else None,
        average_validation_loss_nats=score.average_loss_nats if score else None,
        validation_loss_se_nats=score.loss_se_nats if score else None,
        train_loss_nats=outcome.train_loss_nats,
        tokens=tokens,
        flops=float(tokens * plan.flops_per_token),
        tokens_per_sec=tokens_per_sec,
        mfu=tokens_per_sec and peaks.mfu(tokens_per_sec * plan.flops_per_token, device.device_kind, devices),
        optimizer_steps=outcome.step,
        secs=outcome.secs,
        peak_memory_bytes=_peak_memory_bytes(device) if alone else None,  # the peak may come from another run
        program_memory_bytes=outcome.program_memory_bytes,
        fingerprint=plan.fingerprint,
        dataset_sha256=dataset.meta.sha256,
        diverged_at_step=outcome.diverged_at_step,
        sample=sample,
        params=plan.params,
        seed=plan.seed,
        batch_size=plan.batch_size,
        device={"platform": device.platform, "kind": device.device_kind, "count": plan.mesh.devices},
        started=started,
        finished=now(),
        **records.environment(),
    )


def _perplexity(loss_nats: float) -> float:
    try:
        return math.exp(loss_nats)
    except OverflowError:
        return math.inf


def _peak_memory_bytes(device) -> int | None:
    """Return the peak on the first accelerator, or of this process where the host is the device."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("peak_bytes_in_use")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def now() -> str:
    """Return the time as results have it: ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
