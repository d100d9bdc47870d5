"""Recipes: a run, or the plugins of one, written in YAML."""

from weightsmith.recipe.experiment import Experiment, prepare
from weightsmith.recipe.plugins import from_plain
from weightsmith.recipe.recipe import Recipe, read_plugins, read_recipe
from weightsmith.recipe.text import read_text, read_yaml, written

__all__ = [
    "Experiment",
    "Recipe",
    "from_plain",
    "prepare",
    "read_plugins",
    "read_recipe",
    "read_text",
    "read_yaml",
    "written",
]
