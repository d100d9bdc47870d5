"""The parameters of classes and functions, as they are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from weightsmith.errors import ConfigurationError
from weightsmith.recipe.names import shown

__all__ = ["called_parameters", "own_name", "positional_names", "required_names", "rest_name"]

_BY_POSITION = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def required_names(target: Callable[..., Any]) -> list[str]:
    """The parameters that have no default and can be given by name."""
    return [each.name for each in _parameters(target) or () if each.default is each.empty and each.kind in _BY_NAME]


def positional_names(target: Callable[..., Any]) -> list[str]:
    """The parameters that can be given by position."""
    return [each.name for each in _parameters(target) or () if each.kind in _BY_POSITION]


def rest_name(target: Callable[..., Any]) -> str | None:
    """The name of the parameter that takes any number of values, as ``*args`` does; ``None`` if there is none."""
    return next((each.name for each in _parameters(target) or () if each.kind is each.VAR_POSITIONAL), None)


def own_name(target: Callable[..., Any], name: str, what: str) -> str:
    """The target's own name for what it is given when it is made: of the parameter of this name, else of its first.

    Args:
        target: a class or function.
        name: how it is called mostly, such as ``params``.
        what: what it is, in words.

    Raises:
        ConfigurationError: the target takes no such thing; the message says what it must take.
    """
    parameters = _parameters(target)
    needed = [name for name in required_names(target) if name in positional_names(target)]
    if parameters is None or any(each.name == name for each in parameters):
        return name
    if needed:
        return needed[0]
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return name
    raise ConfigurationError(f"{shown(target)} must take {what} as its first parameter")


def called_parameters(target: Callable[..., Any], called_with: Sequence[str]) -> list[str]:
    """The parameters that a function gets by position when it is called.

    Args:
        target: the function.
        called_with: what it is called with, in words.

    Raises:
        ConfigurationError: it does not take as many.
    """
    names = positional_names(target)
    if len(names) < len(called_with) and rest_name(target) is None and _parameters(target) is not None:
        takes = ", ".join(names) or "nothing"
        raise ConfigurationError(f"{shown(target)} takes {takes}, but must take two: {' and '.join(called_with)}")
    return names[: len(called_with)]


def _parameters(target: Callable[..., Any]) -> Sequence[inspect.Parameter] | None:
    """``None`` where they are not known, of what is written in C."""
    try:
        return list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return None
