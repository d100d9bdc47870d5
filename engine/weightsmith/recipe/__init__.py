"""Recipes: a run, or the plugins of one, written in YAML."""

from weightsmith.recipe.plugins import from_plain
from weightsmith.recipe.recipe import Recipe, read_plugins, read_recipe

__all__ = ["Recipe", "from_plain", "read_plugins", "read_recipe"]
