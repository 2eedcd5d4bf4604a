"""The first run: a small decoder learns to write Python on the standard library of your own interpreter.

Question: does everything work here, and what does a run look like?
Run:      python -m smallbatch.train     (the config of every command that is given none)
Cost:     1.0M tokens, 1,024 steps of 4 sequences of 256 bytes; 0.9M parameters, 6.8e12 FLOPs; 1-2 minutes on 2 cores.
Expect:   a validation loss that falls from ln 256 = 5.5 nats a byte, and a sample that looks like code.
"""

from smallbatch import config


def get_config() -> config.Config:
    return config.quickstart()
