"""Changes to a recipe from the command line: ``optimizer.lr=0.01``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from weightsmith.discovery import plugin_class
from weightsmith.errors import RecipeError
from weightsmith.recipe.names import is_long_form, name_and_settings
from weightsmith.recipe.plugins import first_field
from weightsmith.recipe.text import Items, Section, located, place_of, read_text
from weightsmith.spelling import nearest

__all__ = ["change"]


def change(recipe: Section, text: str) -> None:
    """Apply ``"path=value"`` to a recipe. The path goes down by keys, through the one name of a class without naming
    it (``optimizer.lr``), and into a list by number or by a class's name (``plugins.MaxNorm.limit``; ``plugins.L2=0.1``
    and ``plugins.L2={strength: 0.1}`` give it other fields); the value is YAML.

    >>> recipe = read_text("optimizer: {Adam: {lr: 0.1}}\\nplugins: [L2: 0.1, Clamp: {low: 0}]", "recipe.yaml")
    >>> change(recipe, "optimizer.lr=1e-3")
    >>> change(recipe, "plugins.Clamp.low=-1")
    >>> change(recipe, "plugins.L2=0.2")
    >>> recipe
    {'optimizer': {'Adam': {'lr': 0.001}}, 'plugins': [{'L2': 0.2}, {'Clamp': {'low': -1}}]}

    Raises:
        RecipeError: there is no such place, or the value is no YAML.
    """
    path, equals, value = text.partition("=")
    source = f"--set {text}"
    if not equals or not path.strip():
        raise RecipeError([f"{source}: write path=value, such as optimizer.lr=0.01"])
    *outer, last = path.strip().split(".")
    container: Any = recipe
    for depth, part in enumerate(outer):
        above = container
        container = _settings(container, part, source, are_names=depth == 1 and outer[0] in _NAMES)
        container = _entered(container, _key(container, part, source, beside=_known(above)), source)
    container = _settings(container, last, source, are_names=len(outer) == 1 and outer[0] in _NAMES)
    key = _key(container, last, source, may_be_new=True)
    found = read_text(value, source)
    if isinstance(container, Items) and not last.isdecimal():
        with located(container, key):
            name, _ = name_and_settings(container[key])
        found = Section({name: found}, source, {name: source})  # a plugin that was named gets other fields
    container[key] = found
    container.places[key] = source


_NAMES = ("models", "optimizers", "schedulers", "metrics")
"""What holds names of the user's, which may look like those of classes."""


def _known(container: Any) -> list[str]:
    """What stands in a container, as a path may call it."""
    if is_long_form(container):
        return [str(container["class_path"])]
    if isinstance(container, Section):
        return [str(key) for key in container]
    return [next(iter(_known(item)), "") if isinstance(item, Section) else str(item) for item in container]


def _key(container: Any, part: str, source: str, *, may_be_new: bool = False, beside: Iterable[str] = ()) -> Any:
    """The key or index in a container that a part of the path means; in an error also names ``beside`` it."""
    known = _known(container)
    if isinstance(container, Items):
        numbers = [i for i, name in enumerate(known) if part in (str(i), name.rpartition(".")[2])]
        if len(numbers) == 1:
            return numbers[0]
        problem = f"{part!r} stands there {len(numbers)} times: give its number, counted from 0"
        raise RecipeError([f"{source}: {problem if numbers else f'there is no {part!r}{nearest(part, known)}'}"])
    if part.isdecimal() and int(part) in container:
        return int(part)
    if part in container or may_be_new:
        return part
    raise RecipeError([f"{source}: there is no {part!r}{nearest(part, dict.fromkeys([*known, *beside]))}"])


def _entered(container: Any, key: Any, source: str) -> Any:
    """What stands under the key, where a path can go on."""
    found = container[key]
    if isinstance(found, str) or found is None:  # a class without settings, which may get some
        inner = Section(place=source)
        found = container[key] = inner if found is None else Section({found: inner}, source, {found: source})
    if not isinstance(found, (Section, Items)):
        raise RecipeError([f"{source}: {key!r} is {found!r}, which has no parts"])
    return found


def _settings(container: Any, part: str, source: str, *, are_names: bool) -> Any:
    """Where the container is one class's name to its settings, and the path does not name the class: the settings."""
    is_one = is_long_form(container) or (isinstance(container, Section) and len(container) == 1)
    if are_names or not is_one or part in container:
        return container
    name, _ = name_and_settings(container)
    is_class = isinstance(name, str) and (name[:1].isupper() or "." in name)
    if not is_class:
        return container
    key = name
    if is_long_form(container):
        key = "init_args"
        container.setdefault(key, None)
    alone = container[key]
    if alone is not None and not isinstance(alone, (Section, Items)):  # the first field of a plugin
        with located(Section(place=source)):
            field = first_field(plugin_class(name))
        container[key] = Section({field: alone}, source, {field: place_of(container, key)})
    return _entered(container, key, source)
