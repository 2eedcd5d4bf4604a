"""Train language models at small batch sizes, and find out which batch size to use."""

__version__ = "0.1.0"
