"""The CPU host's program: lease a job, take its step, hand in the outcome; and its supervision."""
