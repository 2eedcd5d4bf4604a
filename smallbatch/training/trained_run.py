"""A trained run, read from its directory for inference: plan, tokenizer and the parameters of the last checkpoint."""

import sys
import typing

import jax

from smallbatch import config as configs
from smallbatch import optim
from smallbatch.data import tokenizers
from smallbatch.errors import UserError
from smallbatch.files import json_files, paths
from smallbatch.model import decoder
from smallbatch.model.sampling import generate
from smallbatch.optim import OPTIMIZERS
from smallbatch.plan import mesh_plan
from smallbatch.plan import plan as plans
from smallbatch.runs.progress import log
from smallbatch.runs.records import plan_hyperparams
from smallbatch.runs.run_dir import RunDir
from smallbatch.specs import DeviceSpec, ModelSpec
from smallbatch.training.checkpoint import Checkpoints
from smallbatch.training.jax_setup import local_devices, skip_absent_tpu

PLAN = {"model": typing.get_type_hints(ModelSpec), "optimizer": {"name": str}}  # the keys that are read from plan.json


def continue_text(
    path: str, prompt: str, new_tokens: int, *, temperature: float, top_p: float, seed: int
) -> tuple[str, int | None]:
    """Return the prompt with up to `new_tokens` tokens that follow it, and the context length if it was reached.

    Raises: UserError if the directory has no plan, tokenizer or checkpoint, or the prompt does not fit the context.
    """
    workdir = RunDir(paths.local(path, "--run"))
    if not paths.exists(workdir.plan) and not paths.exists(workdir.config):
        raise UserError(f"{workdir.path} is not a run directory (no plan.json or config.json); give one with --run=DIR")
    tokenizer = tokenizers.load(workdir.tokenizer)
    if tokenizer is None:
        raise UserError(
            f"{workdir.path} was trained on token ids and has no tokenizer; train with data.tokenizer=file:PATH of the "
            "tokenizer.json that made the tokens"
        )
    prompt_ids = tokenizer.encode_batch([prompt])[0].tolist()
    plan = read_plan(workdir, tokenizer.vocab_size)
    spec = ModelSpec(**plan["model"])
    ids = generate(
        spec,
        load_params(workdir, plan, spec),
        prompt_ids,
        new_tokens,
        temperature=temperature,
        top_p=top_p,
        key=jax.random.key(seed),
        end_id=tokenizer.eod_id,
    )
    full = len(prompt_ids) + len(ids) == spec.context_tokens and len(ids) < new_tokens
    return tokenizer.decode(prompt_ids + ids), spec.context_tokens if full else None


def load_params(workdir: RunDir, plan: dict, spec: ModelSpec) -> decoder.Params:
    """Return the parameters that a run is evaluated with, from its last checkpoint, on one device."""
    skip_absent_tpu()
    here = jax.sharding.SingleDeviceSharding(local_devices()[0])
    abstract = decoder.abstract_params(spec)
    wanted = {"params": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract)}
    if _averages(plan):
        wanted |= {"opt_state": {"z": wanted["params"]}}
    restored = Checkpoints(workdir.checkpoints).restore(wanted, log=lambda line: print(line, file=sys.stderr))
    if restored is None:
        fix = "train first, or wait for the first checkpoint"
        if paths.exists(workdir.result):
            fix = "rerun the sweep with --keep_checkpoints to keep the checkpoints of its cells"
        raise UserError(f"{workdir.path} has no checkpoint; {fix}")
    params = restored[0]["params"]
    if _averages(plan):
        params = optim.evaluated(
            params, restored[0]["opt_state"]["z"], plan_hyperparams(plan, workdir.plan)["interpolation"]
        )
    return params


def read_plan(workdir: RunDir, vocab_size: int) -> dict:
    """Return the plan of a run from plan.json, or from config.json if plan.json is missing or damaged.

    Raises: UserError if neither can be read.
    """
    fix = "restore it from a copy, or delete it to recompute the plan from config.json"
    try:
        plan = json_files.read_object(workdir.plan, PLAN, "the plan of a run", fix)
        unknown = plan["model"].keys() - PLAN["model"].keys()
        if unknown or plan["optimizer"]["name"] not in OPTIMIZERS:
            what = f"model.{min(unknown)} is unknown" if unknown else f"optimizer.name is {plan['optimizer']['name']!r}"
            raise UserError(f"{workdir.plan} is damaged ({what}); {fix}")
        if _averages(plan):
            shape = {"interpolation": float}
            if problem := json_files.mismatch(plan_hyperparams(plan, workdir.plan), shape):
                raise UserError(f"{workdir.plan} is damaged ({problem}); {fix}")
        return plan
    except UserError as error:
        if not workdir.config.exists():
            raise
        plan = _plan_of_config(workdir, vocab_size)
        log(f"{error}. The plan is recomputed from {workdir.config}.")
        return plan


def _plan_of_config(workdir: RunDir, vocab_size: int) -> dict:
    config = configs.base()
    for key, value in configs.flatten(json_files.read_config(workdir.config)).items():
        if key not in configs.KEY_BY_NAME:
            raise UserError(
                f"{workdir.config} is damaged, or from another version: {configs.unknown_key(key)}; restore it from a "
                "copy, or use the version of smallbatch that wrote it"
            )
        section, _, name = key.partition(".")
        config[section][name] = value
    config.model.attention = "xla"  # this machine may not have the kernel of the training run
    configs.validate(config)
    devices = DeviceSpec("cpu", mesh_plan.least_mesh(config.mesh).devices)
    return plans.make(config, vocab_size=vocab_size, devices=devices).to_dict()


def _averages(plan: dict) -> bool:
    """Return whether a run is evaluated at an interpolation of two sets of weights."""
    return OPTIMIZERS[plan["optimizer"]["name"]].schedule_free
