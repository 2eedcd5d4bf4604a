"""From run directories to answers: files in, numbers, tables and one page out; never JAX.

One idea: an analysis is a pure function of the run table (`table.py`), so that it works on the sweeps of this trainer
(`sweeps.py`) and on a CSV of any other (`columns.py`) alike.
"""
