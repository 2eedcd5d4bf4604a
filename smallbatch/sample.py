"""Write text with a trained model: continue a prompt from a run's last checkpoint. Needs no corpus."""

import sys
from pathlib import Path

from smallbatch import cli, records
from smallbatch.data import tokenizers
from smallbatch.errors import UserError
from smallbatch.specs import OPTIMIZER_KEYS, ModelSpec
from smallbatch.training.workdir import Workdir


def define_flags(flags) -> None:
    from absl import flags as absl

    absl.DEFINE_string("run", None, "run directory of smallbatch.train", flag_values=flags)
    absl.DEFINE_string("prompt", "def ", "text to continue", flag_values=flags)
    cli.integer(flags, "tokens", 200, "length of the continuation", 0, 2**22)
    cli.number(flags, "temperature", 0.8, "0 takes the likeliest token each time", 0.0, 1000.0)
    cli.number(flags, "top_p", 0.95, "draw from the likeliest tokens of this mass", 1e-6, 1.0)
    cli.integer(flags, "seed", 0, "another seed draws another text", 0, 2**32 - 1)


def main(flags) -> None:
    if flags.run is None:
        raise UserError("which run? write --run=DIR, a run directory of smallbatch.train")
    workdir = Workdir(Path(flags.run))
    if not workdir.plan.exists():
        raise UserError(f"{workdir.path} is not a run directory: it has no plan.json")
    tokenizer = tokenizers.load(workdir.tokenizer)
    if tokenizer is None:
        raise UserError(f"{workdir.path} was trained on token ids and has no tokenizer to write text with")
    prompt_ids = tokenizer.encode_batch([flags.prompt])[0].tolist()
    plan = records.read_json(workdir.plan)
    spec = ModelSpec(**plan["model"])
    ids = _continue(workdir, plan, spec, prompt_ids, tokenizer.eod_id, flags)
    print(tokenizer.decode(prompt_ids + ids))
    if len(prompt_ids) + len(ids) == spec.context_tokens and len(ids) < flags.tokens:
        print(f"(the context of {spec.context_tokens} tokens is full)", file=sys.stderr)


def _continue(workdir: Workdir, plan: dict, spec: ModelSpec, prompt_ids: list[int], end_id: int, flags) -> list[int]:
    import jax

    from smallbatch import optim
    from smallbatch.model import gpt
    from smallbatch.model.decode import generate
    from smallbatch.training.checkpoint import Checkpoints
    from smallbatch.training.programs import skip_absent_tpu

    skip_absent_tpu()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
    wanted = {"params": jax.tree.map(place, gpt.abstract_params(spec))}
    averages = "interpolation" in OPTIMIZER_KEYS[plan["optimizer"]["name"]]
    if averages:
        wanted |= {"opt_state": {"z": wanted["params"]}}
    restored = Checkpoints(workdir.checkpoints).restore(wanted, say=lambda line: print(line, file=sys.stderr))
    if restored is None:
        fix = "train first, or wait for its first one"
        if workdir.result.exists():
            fix = "a sweep keeps those of its cells with --keep_checkpoints"
        raise UserError(f"{workdir.path} has no checkpoint; {fix}")
    params = restored[0]["params"]
    if averages:
        params = optim.evaluated(params, restored[0]["opt_state"]["z"], plan["hypers"]["interpolation"])
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
    cli.run(main, define_flags, config=False)
