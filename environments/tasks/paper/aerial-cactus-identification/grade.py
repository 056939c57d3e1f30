"""Area under the ROC curve."""

from environments.tasks.grading import metrics


def grade(submission, answers):
    return metrics.auc(answers["has_cactus"].to_numpy(), submission[["has_cactus"]].to_numpy())
