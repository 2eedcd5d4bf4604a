"""Generate text with a trained model: continue a prompt with the last checkpoint of a run. Needs no corpus."""

import sys
import typing

from smallbatch import config as configs
from smallbatch.config import cli
from smallbatch.config.key_types import Interval, Key
from smallbatch.data import tokenizers
from smallbatch.errors import UserError
from smallbatch.files import json_files, paths
from smallbatch.optim import OPTIMIZERS
from smallbatch.plan import mesh_plan
from smallbatch.plan import plan as plans
from smallbatch.runs.progress import log
from smallbatch.runs.run_dir import RunDir
from smallbatch.specs import DeviceSpec, ModelSpec

PLAN = {"model": typing.get_type_hints(ModelSpec), "optimizer": {"name": str}}  # keys read from plan.json


FLAGS = (
    Key("--run", None, str, "run directory of smallbatch.train"),
    Key("--prompt", "def ", str, "text to continue"),
    Key("--tokens", 200, int, "number of tokens to sample", Interval(0, 2**22)),
    Key("--temperature", 0.8, float, "sampling temperature; 0 is greedy decoding", Interval(0, 1000)),
    Key("--top_p", 0.95, float, "nucleus sampling: probability mass of the tokens to sample from", Interval(1e-6, 1)),
    Key("--seed", 0, int, "seed of the sampling", Interval(0, 2**32, "[)")),
)


def main(flags) -> None:
    if flags.run is None:
        raise UserError("--run is unset; set it to a run directory of smallbatch.train")
    workdir = RunDir(paths.local(flags.run, "--run"))
    if not paths.exists(workdir.plan) and not paths.exists(workdir.config):
        raise UserError(f"{workdir.path} is not a run directory (no plan.json or config.json); give one with --run=DIR")
    tokenizer = tokenizers.load(workdir.tokenizer)
    if tokenizer is None:
        raise UserError(
            f"{workdir.path} was trained on token ids and has no tokenizer; train with data.tokenizer=file:PATH of the "
            "tokenizer.json that produced the tokens"
        )
    prompt_ids = tokenizer.encode_batch([flags.prompt])[0].tolist()
    plan = read_plan(workdir, tokenizer.vocab_size)
    spec = ModelSpec(**plan["model"])
    ids = _continue(workdir, plan, spec, prompt_ids, tokenizer.eod_id, flags)
    print(tokenizer.decode(prompt_ids + ids))
    if len(prompt_ids) + len(ids) == spec.context_tokens and len(ids) < flags.tokens:
        print(f"(the context of {spec.context_tokens} tokens is full)", file=sys.stderr)


def read_plan(workdir: RunDir, vocab_size: int) -> dict:
    """Return the plan of a run from plan.json, or from config.json if plan.json is missing or damaged.

    Raises UserError if neither can be read.
    """
    fix = "restore it from a copy, or delete it to recompute the plan from config.json"
    try:
        plan = json_files.read_object(workdir.plan, PLAN, "the plan of a run", fix)
        unknown = plan["model"].keys() - PLAN["model"].keys()
        if unknown or plan["optimizer"]["name"] not in OPTIMIZERS:
            what = f"model.{min(unknown)} is unknown" if unknown else f"optimizer.name is {plan['optimizer']['name']!r}"
            raise UserError(f"{workdir.plan} is damaged ({what}); {fix}")
        if _averages(plan) and (problem := json_files.mismatch(plan, {"hyperparams": {"interpolation": float}})):
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


def _continue(workdir: RunDir, plan: dict, spec: ModelSpec, prompt_ids: list[int], end_id: int, flags) -> list[int]:
    import jax

    from smallbatch import optim
    from smallbatch.model import decoder
    from smallbatch.model.sampling import generate
    from smallbatch.training.checkpoint import Checkpoints
    from smallbatch.training.jax_setup import local_devices, skip_absent_tpu

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
        params = optim.evaluated(params, restored[0]["opt_state"]["z"], plan["hyperparams"]["interpolation"])
    return generate(
        spec,
        params,
        prompt_ids,
        flags.tokens,
        temperature=flags.temperature,
        top_p=flags.top_p,
        key=jax.random.key(flags.seed),
        end_id=end_id,
    )


if __name__ == "__main__":
    cli.run(main, FLAGS, config=False)
