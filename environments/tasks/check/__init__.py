"""The check of a task: whether it runs, whether it grades, and whether any public file reveals its labels."""
