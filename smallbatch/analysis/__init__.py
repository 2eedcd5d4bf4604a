"""Turn run directories, or a CSV file of runs, into tables, figures and a report. Nothing here imports JAX.

`read` makes a run table. Each analysis, in a file of its own, computes its tables from the run table and ends with a
`Section`. `analyze.py` lists the sections, and `report` writes them.
"""
