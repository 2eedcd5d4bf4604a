"""Generate text with a trained model: continue a prompt with the last checkpoint of a run. Needs no corpus."""

import sys

from smallbatch.config import cli
from smallbatch.config.key_types import Interval, Key
from smallbatch.errors import UserError

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
    from smallbatch.training.trained_run import continue_text

    text, full_context = continue_text(
        flags.run, flags.prompt, flags.tokens, temperature=flags.temperature, top_p=flags.top_p, seed=flags.seed
    )
    print(text)
    if full_context:
        print(f"(the context of {full_context} tokens is full)", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, FLAGS, config=False)
