"""Log loss of two classes."""

from environments.tasks.grading import metrics


def grade(submission, answers):
    return metrics.binary_log_loss(answers["is_iceberg"].to_numpy(), submission[["is_iceberg"]].to_numpy())
