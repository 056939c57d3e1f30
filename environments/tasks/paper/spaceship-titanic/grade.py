"""Accuracy."""

from environments.tasks import InvalidSubmissionError


def grade(submission, answers):
    guess = submission["Transported"]
    if not guess.isin(["True", "False"]).all():
        raise InvalidSubmissionError("Transported must be True or False in every row")
    return (guess == answers["Transported"].astype(str)).mean()
