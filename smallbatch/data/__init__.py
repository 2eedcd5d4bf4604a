"""Text in, frozen token shards out: sources, tokenizers, prepare, stream. numpy and grain, never JAX."""
