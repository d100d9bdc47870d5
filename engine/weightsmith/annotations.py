"""What a plugin's field is annotated with, and which values that leaves out."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import Field
from typing import Any

from weightsmith.errors import ConfigurationError
from weightsmith.schedules import Schedule
from weightsmith.spelling import plain_word

__all__ = ["as_annotated", "takes_number", "type_names"]

_SIMPLE_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "None": (type(None),),
}


def type_names(field_: Field[Any]) -> set[str]:
    """The names in a field's annotation: those of ``float | None`` are ``"float"`` and ``"None"``."""
    return set(re.findall(r"\w+", getattr(field_.type, "__name__", None) or str(field_.type)))


def takes_number(field_: Field[Any]) -> bool:
    """Whether a field is annotated as a number, so that a function given for it is meant as a schedule."""
    return not {"int", "float"}.isdisjoint(type_names(field_))


def as_annotated(field_: Field[Any], value: Any) -> Any:
    """The value, a whole number that torch has no room for as a float where the field takes one.

    Raises:
        ConfigurationError: the field is annotated with simple types or words alone, and this is another value, which
            would fail far from here.
    """
    annotation = str(field_.type).removeprefix("typing.")
    if annotation.startswith("Literal["):
        words = ast.literal_eval(f"({annotation[len('Literal[') : -1]},)")
        if value not in words:
            raise ConfigurationError(f"{value!r} is not one of {', '.join(map(repr, words))}")
        return value
    names = type_names(field_)
    if not names <= _SIMPLE_TYPES.keys() or isinstance(value, Schedule):
        return value
    if not isinstance(value, tuple(kind for name in names for kind in _SIMPLE_TYPES[name])):
        hint = plain_word(value) if "bool" in names else ""
        raise ConfigurationError(f"{value!r} is a {type(value).__name__}, where the field takes {field_.type}{hint}")
    return _within_bounds(value, "float" in names) if isinstance(value, int) else value


def _within_bounds(value: int, may_be_float: bool) -> Any:
    if abs(value) <= sys.maxsize:
        return value
    most = sys.float_info.max if may_be_float else sys.maxsize
    if abs(value) > most:
        raise ConfigurationError(f"its magnitude is beyond {most:.2g}, the largest it can have: give a smaller one")
    return float(value)
