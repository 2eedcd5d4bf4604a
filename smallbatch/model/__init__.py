"""The Flax GPT, its attention and its loss, independent of optimizers, files and configs."""
