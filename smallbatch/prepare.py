"""Prepare a dataset: read a corpus, hold documents out, tokenize, keep the token shards for every later run.

A dataset that is there already is reused. `python -m smallbatch.train` does the same when it starts.
"""

from dataclasses import fields

from smallbatch.config import cli
from smallbatch.data.dataset import Counts
from smallbatch.data.prepare import prepare
from smallbatch.specs import DataSpec


def main(config, flags) -> None:
    spec = DataSpec(**{field.name: config.data[field.name] for field in fields(DataSpec)})
    dataset = prepare(spec)
    meta = dataset.meta
    print(f"dataset     {dataset.dir}")
    print(f"source      {meta.source}")
    print(f"tokenizer   {meta.tokenizer}, {meta.vocab_size:,} ids")
    print(f"train       {_counted(meta.train)}")
    print(f"validation  {_counted(meta.validation)}")
    print(f"unused      {_counted(meta.unused)}")
    print(f"sha256      {meta.sha256}")


def _counted(counts: Counts) -> str:
    """Return what is known of a split, such as '701 documents, 11,661,478 bytes, 11,662,180 tokens'."""
    known = [(name, getattr(counts, name)) for name in ("documents", "bytes", "tokens")]
    return ", ".join(f"{value:,} {name}" for name, value in known if value is not None)


if __name__ == "__main__":
    cli.run(main)
