"""Log loss of three classes; rows are scaled to add up to 1."""

from environments.tasks.grading import metrics

AUTHORS = ["EAP", "HPL", "MWS"]


def grade(submission, answers):
    truth = answers["author"].map(AUTHORS.index).to_numpy()
    return metrics.log_loss(truth, submission[AUTHORS].to_numpy(), metrics.COMPETITION_FLOOR)
