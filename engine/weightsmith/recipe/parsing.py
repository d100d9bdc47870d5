"""Values by type hints, as jsonargparse reads them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from weightsmith.spelling import plain_word

__all__ = [
    "VALUE",
    "namespaces",
    "parameter_names",
    "parser_of_hint",
    "parser_of_parameter",
    "reason",
    "without_places",
]

VALUE = "value"
"""The name of the argument of :func:`parser_of_hint`."""


@functools.cache
def parameter_names(target: Callable[..., Any]) -> tuple[str, ...]:
    """The parameters of a class or function, those that it hands on to others included."""
    return tuple(_add_arguments(ArgumentParser(exit_on_error=False), target, set()))


def parser_of_parameter(target: Callable[..., Any], name: str) -> ArgumentParser:
    """A parser with one argument: a parameter of a class or function."""
    parser = ArgumentParser(exit_on_error=False)
    _add_arguments(parser, target, set(parameter_names(target)) - {name})
    return parser


def parsed_hint(target: Callable[..., Any], name: str) -> Any:
    """The hint of a parameter as jsonargparse finds it out, which looks also where Python does not: at what is imported
    for type checkers alone, and at what a parameter is handed on to. ``Any`` if it cannot be told."""
    for action in parser_of_parameter(target, name)._actions:
        if action.dest == name:
            return getattr(action, "_typehint", None) or Any
    return Any


def parser_of_hint(hint: Any) -> ArgumentParser:
    """A parser with one argument, :data:`VALUE`, of a type.

    Raises:
        ValueError: jsonargparse does not know the type.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{VALUE}", type=hint)
    return parser


def _add_arguments(parser: ArgumentParser, target: Callable[..., Any], skip: set[str]) -> list[str]:
    add: Any = parser.add_class_arguments if isinstance(target, type) else parser.add_function_arguments
    names: list[str] = add(target, fail_untyped=False, skip=skip)
    return names


def namespaces(parsed: Any) -> list[Namespace]:
    """What jsonargparse would make objects of, in what it parsed."""
    if isinstance(parsed, Namespace):
        return [parsed]
    inner = parsed.values() if type(parsed) is dict else parsed if isinstance(parsed, (list, tuple)) else ()
    return [each for item in inner for each in namespaces(item)]


def without_places(plain: Any) -> Any:
    """Plain data without the places where it was written, which jsonargparse would not know how to copy."""
    if isinstance(plain, Mapping):
        return {key: without_places(value) for key, value in plain.items()}
    return [without_places(item) for item in plain] if isinstance(plain, list) else plain


def reason(plain: Any, message: str) -> str:
    """jsonargparse's message in a line."""
    types = re.search(r"Subtypes: [\[(](.*)[\])]|Expected an? (.+?)\. Got value|Not of type (\w+):", message)
    if types is None:
        return "; ".join(line.strip() for line in message.splitlines() if not line.startswith("Parser key"))
    names = re.sub(r"<class '(?:builtins\.)?([\w.]+)'>", r"\1", types[1] or types[2] or types[3])
    for prefix, in_words in _IN_WORDS.items():
        names = names.replace(prefix, in_words)
    return f"{plain!r} is not of the type {names}{plain_word(plain) if 'bool' in names else ''}"


_IN_WORDS = {
    "jsonargparse.": "",
    "typing.": "",
    "NoneType": "null",
    "PositiveInt": "int (at least 1)",
    "NonNegativeInt": "int (at least 0)",
    "PositiveFloat": "float (above 0)",
    "NonNegativeFloat": "float (at least 0)",
}
