"""The embedded tasks, a module a kind of data."""

from __future__ import annotations

from environments.tasks.embedded import tabular
from environments.tasks.recipe import Recipe


def recipes() -> dict[str, Recipe]:
    """Every embedded task by name."""
    return {recipe.spec.name: recipe for module in (tabular,) for recipe in module.recipes()}
