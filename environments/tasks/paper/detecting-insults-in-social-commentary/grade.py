"""Accuracy."""

from environments.tasks.grading import metrics


def grade(submission, answers):
    return metrics.accuracy(answers["Insult"].to_numpy(), submission[["Insult"]].to_numpy())
