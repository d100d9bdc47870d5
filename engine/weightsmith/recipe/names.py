"""The classes and functions that a recipe's names stand for."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from weightsmith.errors import ConfigurationError
from weightsmith.importing import looked_up
from weightsmith.recipe.hints import gives
from weightsmith.spelling import guess

__all__ = [
    "found",
    "holds_names",
    "indented",
    "is_long_form",
    "is_short_name",
    "name_and_settings",
    "names_something",
    "shown",
]

_PACKAGES = ("torch.nn", "torch.optim", "torch.optim.lr_scheduler", "torch.utils.data", "ignite.metrics")
"""Where short names are looked up."""


def name_and_settings(plain: Any) -> tuple[Any, Any]:
    """The name in plain data, and what stands behind it: ``None``, arguments by name, or a list of them.

    Raises:
        ConfigurationError: it is neither a name nor one name and its arguments.
    """
    if isinstance(plain, str):
        return plain, None
    if is_long_form(plain):
        return plain["class_path"], plain.get("init_args")
    if isinstance(plain, Mapping) and len(plain) == 1:
        ((name, settings),) = plain.items()
        return name, settings
    raise ConfigurationError(f"{plain!r} names nothing: {indented(plain) or 'write one name, then its arguments'}")


def indented(plain: Any) -> str:
    """What to do where what belongs to a name stands beside it, not below; empty if that is not so."""
    if not isinstance(plain, Mapping) or len(plain) < 2:
        return ""
    (name, settings), *others = plain.items()
    return f"indent {', '.join(str(key) for key, _ in others)} below {name}" if settings is None else ""


def is_long_form(plain: Any) -> bool:
    """Whether plain data is ``class_path:``, with or without ``init_args:``."""
    return isinstance(plain, Mapping) and "class_path" in plain and plain.keys() <= {"class_path", "init_args"}


def names_something(plain: Any) -> bool:
    """Whether plain data, where a value is meant, stands for what a class or function makes."""
    if isinstance(plain, Mapping) and "class_path" in plain:
        return True
    if not isinstance(plain, Mapping) or len(plain) != 1:
        return False
    (name,) = plain
    return isinstance(name, str) and ("." in name or is_short_name(name))


def holds_names(plain: Any) -> bool:
    """Whether anything inside a list or mapping, at any depth, names something."""
    inner = plain.values() if isinstance(plain, Mapping) else plain if isinstance(plain, list) else ()
    return any(names_something(item) or holds_names(item) for item in inner)


def is_short_name(name: str) -> bool:
    """Whether torch or Ignite has a class of this name."""
    return name in _short_names(None)


def found(name: Any, expected: type | None) -> Callable[..., Any]:
    """The class or function of a name: short, of torch's and Ignite's, or an import path.

    Args:
        name: what the recipe says.
        expected: of what class it must be, or what a function must say that it returns. ``None``: anything.

    Raises:
        ConfigurationError: there is none that fits; the message names the nearest.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"{name!r} is no name of a class or function")
    if "." not in name:
        known = _short_names(expected)
        if name not in known:
            raise ConfigurationError(
                f"nothing in torch or Ignite that fits here is called {name!r}{guess(name, known)}; "
                "of others, write the import path"
            )
        return known[name]
    target = _imported(name)
    if not callable(target):
        raise ConfigurationError(f"{name!r} is no class or function")
    if expected is None or gives(target, expected):
        return target  # type: ignore[no-any-return]
    if isinstance(target, type):
        raise ConfigurationError(f"{name!r} is no {expected.__name__}")
    article = "an" if expected.__name__[0] in "AEIOU" else "a"
    raise ConfigurationError(
        f"{name!r} does not say that it returns {article} {expected.__name__}: write `-> …` behind it"
    )


def shown(target: Callable[..., Any]) -> str:
    """What to call a class or function in a message."""
    return getattr(target, "__qualname__", repr(target))


def _imported(path: str) -> Any:
    try:
        return looked_up(path)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}{_nearest_in_module(path)}") from error


def _nearest_in_module(path: str) -> str:
    module, _, name = path.rpartition(".")
    public = [each for each in dir(sys.modules.get(module)) if not each.startswith("_")]
    return "" if name in public else guess(name, public)


@functools.cache
def _short_names(expected: type | None) -> dict[str, type]:
    """The classes in torch and Ignite that a short name may mean here."""
    known: dict[str, type] = {}
    for package in _PACKAGES:
        for name, value in vars(importlib.import_module(package)).items():
            if isinstance(value, type) and not name.startswith("_") and (expected is None or gives(value, expected)):
                known.setdefault(name, value)
    return known
