"""The embedded tasks, one module per kind of data."""

from __future__ import annotations

from environments.tasks.generated.embedded import images, series_and_graphs, tabular, texts
from environments.tasks.generated.recipe import Recipe


def recipes() -> dict[str, Recipe]:
    """Return every embedded task by name."""
    return {
        recipe.spec.name: recipe
        for module in (tabular, images, texts, series_and_graphs)
        for recipe in module.recipes()
    }
