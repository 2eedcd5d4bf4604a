"""Prepare a dataset: read a corpus, choose the validation set, tokenize, and write token files for later runs.

An existing dataset is reused. `python -m smallbatch.train` does the same when it starts.
"""

import dataclasses

from smallbatch.config import cli
from smallbatch.data.prepare import prepare
from smallbatch.plan.plan import data_spec


def main(config, flags) -> None:
    dataset = prepare(data_spec(config))
    meta = dataset.meta
    print(f"dataset     {dataset.dir}")
    print(f"source      {meta.source}")
    print(f"tokenizer   {meta.tokenizer}, {meta.vocab_size:,} ids")
    for part in ("train", "validation", "unused"):
        counts = dataclasses.asdict(getattr(meta, part))
        print(f"{part:<11} {', '.join(f'{count:,} {unit}' for unit, count in counts.items() if count is not None)}")
    print(f"sha256      {meta.sha256}")


if __name__ == "__main__":
    cli.run(main)
