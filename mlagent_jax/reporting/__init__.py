"""What a run tells people: metrics and progress while it goes on; figures with intervals and a page when it is done.

trainer -> metrics.jsonl, evaluation/, trajectories/, run.json -> summary (statistics) -> table, html
"""
