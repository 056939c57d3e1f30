"""Documented, seeded processes that generate data where real data are too small, for embedded and micro-tasks."""
