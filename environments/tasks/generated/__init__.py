"""Tasks generated from a seed: the embedded ones, micro-task families, their scripts and ideas."""
