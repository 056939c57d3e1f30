"""Log loss of two classes."""

from environments.tasks.grading import metrics


def grade(submission, answers):
    return metrics.binary_log_loss(answers["label"].to_numpy(), submission[["label"]].to_numpy())
