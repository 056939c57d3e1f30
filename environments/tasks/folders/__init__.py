"""Your own tasks: a folder as a recipe, and libraries for its prepare.py."""
