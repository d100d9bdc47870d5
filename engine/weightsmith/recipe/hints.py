"""What type hints say: what a parameter takes, what the parts of lists and mappings are, and what a function returns.

A hint that is not there, or cannot be found out, is ``Any``.
"""

from __future__ import annotations

import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = [
    "gives",
    "hinted_classes",
    "item_hints",
    "parameter_hint",
    "result_classes",
    "takes_items",
    "takes_mapping",
    "takes_none",
    "value_hint",
]


def gives(target: Callable[..., Any], expected: type) -> bool:
    """Whether what a class makes, or what a function says it returns, is sure to be of the expected class."""
    results = [target] if isinstance(target, type) else result_classes(target)
    return bool(results) and all(issubclass(result, expected) for result in results)


def result_classes(function: Callable[..., Any]) -> list[type]:
    """The classes that a function says it returns, ``None`` aside; empty if it does not say."""
    return hinted_classes(_hints(function).get("return", Any))


def parameter_hint(target: Callable[..., Any], name: str) -> Any:
    """The hint of a parameter of a class or function."""
    return _hints(target.__init__ if isinstance(target, type) else target).get(name, Any)  # type: ignore[misc]


def hinted_classes(hint: Any) -> list[type]:
    """The classes that a hint names, ``None`` aside; empty if it may be anything or cannot be told."""
    found = [typing.get_origin(part) or part for part in _alternatives(hint) if part is not type(None)]
    return found if all(map(_tells_apart, found)) else []


def item_hints(hint: Any, count: int) -> list[Any]:
    """The hints of the ``count`` items of a list, by the hint of the list."""
    several = [_item_hints(part, count) for part in _alternatives(hint) if _holds_items(part)]
    return [_either(hints) for hints in zip(*several, strict=True)] if several else [Any] * count


def value_hint(hint: Any) -> Any:
    """The hint of the values of a mapping, by the hint of the mapping."""
    several = [typing.get_args(part)[-1] for part in _alternatives(hint) if _holds_values(part)]
    return _either(several) if several else Any


def takes_items(hint: Any) -> bool:
    """Whether a list may stand where the hint is."""
    classes = hinted_classes(hint)
    return not classes or any(issubclass(list, each) or issubclass(tuple, each) for each in classes)


def takes_mapping(hint: Any) -> bool:
    """Whether the hint says that a mapping may stand there."""
    kinds = [typing.get_origin(part) or part for part in _alternatives(hint)]
    return any(typing.is_typeddict(kind) or (_tells_apart(kind) and issubclass(kind, Mapping)) for kind in kinds)


def takes_none(target: Callable[..., Any], name: str) -> bool:
    """Whether ``None`` is a value for a parameter: by its hint, by its default, or since it has no hint."""
    hint = parameter_hint(target, name)
    if hint is Any or type(None) in _alternatives(hint) or isinstance(hint, typing.TypeVar):
        return True
    parameter = inspect.signature(target).parameters.get(name)
    return parameter is not None and parameter.default is None


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # a hint that names what is not imported at run time
        return {}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _either(hints: Iterable[Any]) -> Any:
    return functools.reduce(operator.or_, hints)


def _tells_apart(found: Any) -> bool:
    """Whether it is a class that others are known to be below or not: ``Any``, ``object``, and protocols that cannot be
    checked are none."""
    if not isinstance(found, type) or found is Any or found is object or found.__name__ == "Callable":
        return False
    try:
        issubclass(int, found)
    except TypeError:
        return False
    return True


def _holds_items(hint: Any) -> bool:
    kind = typing.get_origin(hint)
    return _tells_apart(kind) and (issubclass(list, kind) or issubclass(tuple, kind))


def _holds_values(hint: Any) -> bool:
    kind = typing.get_origin(hint)
    return _tells_apart(kind) and issubclass(kind, Mapping)


def _item_hints(hint: Any, count: int) -> list[Any]:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is not tuple or arguments[-1] is Ellipsis:
        return [arguments[0]] * count
    return [*arguments, *[Any] * count][:count]
