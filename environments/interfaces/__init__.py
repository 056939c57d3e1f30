"""The ways in: a command line, JSON lines between processes, Gymnasium."""
