"""Root mean squared error."""

from environments.tasks.grading import metrics


def grade(submission, answers):
    return metrics.rmse(answers["value"].to_numpy(), submission[["value"]].to_numpy())
