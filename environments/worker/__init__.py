"""The CPU host's program and its supervision: lease a job, take its step, submit the outcome."""
