"""Grading, outside every sandbox: the bytes of a submission and the hidden labels give a metric."""
