"""What type hints say: of what classes a parameter may be, and what a function returns."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["gives", "item_classes", "parameter_classes", "result_classes", "takes_none"]


def gives(target: Callable[..., Any], expected: type) -> bool:
    """Whether what a class makes, or what a function says it returns, is sure to be of the expected class."""
    results = [target] if isinstance(target, type) else result_classes(target)
    return bool(results) and all(issubclass(result, expected) for result in results)


def result_classes(function: Callable[..., Any]) -> list[type]:
    """The classes that a function says it returns, ``None`` aside; empty if it does not say."""
    return _classes(_hints(function).get("return"))


def parameter_classes(target: Callable[..., Any], name: str) -> list[type]:
    """The classes that a parameter is annotated with, ``None`` aside; empty if it may be anything or cannot be told."""
    return _classes(_parameter_hint(target, name))


def item_classes(target: Callable[..., Any], name: str) -> list[type]:
    """The classes of which the items of a parameter may be, where it is annotated as a list or another iterable."""
    for hint in _alternatives(_parameter_hint(target, name)):
        kind = typing.get_origin(hint)
        if isinstance(kind, type) and issubclass(kind, Iterable) and not issubclass(kind, Mapping):
            return _classes(typing.get_args(hint)[0])
    return []


def takes_none(target: Callable[..., Any], name: str) -> bool:
    """Whether ``None`` is a value for a parameter: by its hint, by its default, or since it has no hint."""
    hint = _parameter_hint(target, name)
    if hint is None or hint is Any or type(None) in _alternatives(hint) or isinstance(hint, typing.TypeVar):
        return True
    parameter = inspect.signature(target).parameters.get(name)
    return parameter is not None and parameter.default is None


def _parameter_hint(target: Callable[..., Any], name: str) -> Any:
    return _hints(target.__init__ if isinstance(target, type) else target).get(name)  # type: ignore[misc]


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # a hint that names what is not imported at run time
        return {}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _classes(hint: Any) -> list[type]:
    if hint is None:
        return []
    found = [typing.get_origin(part) or part for part in _alternatives(hint) if part is not type(None)]
    is_told = all(isinstance(each, type) and each.__name__ != "Callable" for each in found)
    return found if is_told else []
