"""Mean absolute error."""

from environments.tasks.grading import metrics


def grade(submission, answers):
    return metrics.mae(answers["SalePrice"].to_numpy(), submission[["SalePrice"]].to_numpy())
