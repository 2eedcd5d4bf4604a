"""The Flax GPT, its attention and its loss. Knows no optimizer, mesh, file or config."""
