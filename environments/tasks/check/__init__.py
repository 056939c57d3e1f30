"""The check of a task: does it run, does it grade, and does any public file give its labels away."""
