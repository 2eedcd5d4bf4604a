"""A TFDS dataset that needs no network: the source code of the running Python's standard library."""
