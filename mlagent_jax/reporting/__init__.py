"""Reports of a run: statistics with intervals, tables and pages, made from the files in its workdir.

trainer -> metrics.jsonl, evaluation/, trajectories/, run.json -> summary (statistics) -> table, html
"""
