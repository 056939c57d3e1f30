"""Area under the ROC curve, averaged over the columns."""

from environments.tasks.grading import metrics

TARGETS = ["healthy", "multiple_diseases", "rust", "scab"]


def grade(submission, answers):
    return metrics.column_mean(metrics.auc, answers[TARGETS].to_numpy(), submission[TARGETS].to_numpy())
