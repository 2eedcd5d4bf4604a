"""Turn a corpus into token files, once, and read batches from them: sources -> tokenizers -> prepare -> stream.

Uses numpy and grain, and never imports JAX.
"""
