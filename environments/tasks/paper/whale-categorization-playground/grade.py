"""Mean average precision at 5, of one right name a row."""

import numpy as np

from environments.tasks import InvalidSubmissionError
from environments.tasks.grading import metrics


def grade(submission, answers):
    guesses = [text.split() for text in submission["Id"]]
    if max(map(len, guesses)) > 5:
        raise InvalidSubmissionError("Id has more than five names in a row")
    guesses = np.array([[*names, *[""] * (5 - len(names))] for names in guesses], dtype=object)
    return metrics.map_at_k(answers["Id"].to_numpy(object), guesses)
