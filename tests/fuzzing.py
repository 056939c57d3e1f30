"""How many examples a property of hostile input is tried on, and JSON that hypothesis makes."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

few = settings(
    max_examples=int(os.environ.get("MLAGENT_TEST_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""MLAGENT_TEST_EXAMPLES sets how many; tests/run.sh --full takes 2,000."""

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
json_trees = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
"""What Python's json writes, NaN and infinities among it."""
