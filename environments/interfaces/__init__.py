"""User interfaces: a command line, JSON lines between processes, Gymnasium."""
