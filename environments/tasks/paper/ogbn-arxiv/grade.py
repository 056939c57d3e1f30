"""Accuracy."""

from environments.tasks.grading import metrics


def grade(submission, answers):
    return metrics.accuracy(answers["label"].to_numpy(), submission[["label"]].to_numpy())
