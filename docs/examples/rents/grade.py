"""Mean absolute percentage error. Both tables are complete and in the same order when this is called."""

from environments.tasks import InvalidSubmissionError


def grade(submission, answers):
    if (submission["rent"] < 0).any():
        raise InvalidSubmissionError("a rent is negative")
    return ((submission["rent"] - answers["rent"]).abs() / answers["rent"]).mean()
