"""Cohen's kappa with quadratic weights."""

from environments.tasks.grading import metrics


def grade(submission, answers):
    return metrics.qwk(answers["score"].to_numpy(), submission[["score"]].to_numpy())
