"""Root mean squared error, averaged over the grades."""

from environments.tasks.grading import metrics

TARGETS = ["cohesion", "syntax", "vocabulary", "phraseology", "grammar", "conventions"]


def grade(submission, answers):
    return metrics.mcrmse(answers[TARGETS].to_numpy(), submission[TARGETS].to_numpy())
