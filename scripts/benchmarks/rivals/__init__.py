"""Models of tables to compare with, each a program for a separate environment.

They pin libraries that are older than ours, and so are run by the interpreter of a virtual
environment that has them: `PYTHON NAME.py FOLDER --budget SECONDS --seed N`. The folder has
`train.csv`, `test.csv`, for tables of real numbers also `validation.csv`, and `columns.json`, the
step of each column of numbers (null for categories, 0 for a density); the program writes
`draws.csv`, as many rows as train.csv has, `log_mass.csv`, the log-mass of test.csv's rows on the
grid of the steps, `chosen.txt` and `seconds.json`. Where there is a
`masks.csv`, with 1 for cells that are given and 2 for those that are asked, the program of the
forests writes `answers.csv`, log-masses of the latter given the former, a column for each mask.
"""
