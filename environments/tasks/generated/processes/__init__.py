"""Processes that generate data where real data are too thin: documented, seeded, for embedded and micro-tasks alike."""
