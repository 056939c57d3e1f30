"""`improvement` as it was before a step was judged by what it does to the score: for the study `worth.py` alone."""

import math

from environments.protocol import Outcome, OutcomeKind
from environments.rewards import REWARDS, relative_delta

NOT_SCORED = {OutcomeKind.INVALID_ACTION: 0.0, OutcomeKind.NO_EDIT: 0.15}


@REWARDS.register
def text_counts(outcome: Outcome) -> float:
    """An edit whose text differs is worth 0.5 although it changes nothing, a step without an edit 0.15."""
    if outcome.kind is not OutcomeKind.SCORED:
        return NOT_SCORED.get(outcome.kind, 0.05)
    return 0.5 + 0.5 * math.tanh(2.0 * relative_delta(outcome))
