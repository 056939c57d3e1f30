"""Accuracy."""

from environments.tasks.grading import metrics


def grade(submission, answers):
    return metrics.accuracy(answers["Cover_Type"].to_numpy(), submission[["Cover_Type"]].to_numpy())
