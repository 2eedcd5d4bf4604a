"""Print docs/configs.md: `python -m smallbatch.config > docs/configs.md`."""

from smallbatch.config.keys import markdown

print(markdown(), end="")
