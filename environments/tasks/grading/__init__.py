"""Grading: from the bytes of a submission and the hidden labels to a metric, outside of every sandbox."""
