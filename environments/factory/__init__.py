"""The task factory: a table becomes a task in a folder, and sources of tables become suites of tasks.

    file -> reading -> profile -> choices -> writing -> a task's folder, which `check` verifies
    source -> candidates -> the same, measured -> suite (an index, a card)

Everything here runs on the host, on data from outside. Cells, names and descriptions are only ever data. Scripts and
prepare.py are the same texts for every task; the differences between tasks are JSON.
"""
