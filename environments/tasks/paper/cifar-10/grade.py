"""Accuracy."""

from environments import metrics


def grade(submission, answers):
    return metrics.accuracy(answers["label"].to_numpy(), submission[["label"]].to_numpy())
