"""Services of a running program: errors, interruption, processes, metrics, progress."""
