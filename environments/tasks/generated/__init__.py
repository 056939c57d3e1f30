"""Tasks made from a seed: the embedded ones, generated families, their scripts and ideas."""
