"""Run directories and CSV files, read into a table of runs."""
