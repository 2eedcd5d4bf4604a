"""The first run: a small decoder trained on the Python standard library of your interpreter.

Question: does the installation work, and what does a run look like?
Run:      python -m smallbatch.train     (commands without --config use this config)
Cost:     1.0M tokens, 1,024 steps of 4 sequences of 256 bytes; 0.9M parameters, 6.8e12 FLOPs; 1-2 minutes on 2 cores.
Expect:   a validation loss that falls from ln 256 = 5.5 nats per byte, and a sample that looks like code.
"""

from smallbatch import config


def get_config() -> config.Config:
    return config.quickstart()
