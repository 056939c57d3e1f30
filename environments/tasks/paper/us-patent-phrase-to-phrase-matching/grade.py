"""Pearson's correlation."""

from environments.tasks.grading import metrics


def grade(submission, answers):
    return metrics.pcc(answers["score"].to_numpy(), submission[["score"]].to_numpy())
