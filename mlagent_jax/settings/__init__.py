"""The settings of a run: schema, checks and flags."""
