"""Tasks of your own: a folder as a recipe, and what its prepare.py may use."""
