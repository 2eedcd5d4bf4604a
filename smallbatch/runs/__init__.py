"""Run directories: their files, their records, and what is printed while a run trains."""
