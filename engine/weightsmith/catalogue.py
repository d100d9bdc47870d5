"""What there is to say of a plugin class: its kind, how it is made, what it does."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, Field, fields
from typing import Any

from weightsmith.kinds import (
    Average,
    Constraint,
    GradientEditor,
    Initializer,
    Parametrization,
    Penalty,
    Probe,
    WeightEditor,
)
from weightsmith.plugin import Plugin

__all__ = ["KINDS", "call", "described", "first_sentence", "kind_of"]

KINDS = (
    Initializer,
    Penalty,
    GradientEditor,
    WeightEditor,
    Constraint,
    Parametrization,
    Average,
    Probe,
    Plugin,
)
"""The kinds, in the order in which they act on a weight."""


def kind_of(plugin: type[Plugin]) -> type[Plugin]:
    """The kind that a class derives from.

    >>> from weightsmith_plugins import MaxNorm
    >>> kind_of(MaxNorm).__name__
    'Constraint'
    """
    return next(kind for kind in KINDS if issubclass(plugin, kind))


def call(plugin: type[Plugin]) -> str:
    """How it is made, with the fields of its own and their defaults.

    >>> from weightsmith_plugins import Clamp
    >>> call(Clamp)
    'Clamp(low=None, high=None)'
    """
    own = [field for field in fields(plugin) if not field.kw_only]
    shown = [field.name if field.default is MISSING else f"{field.name}={field.default!r}" for field in own]
    return f"{plugin.__name__}({', '.join(shown)})"


def first_sentence(found: object) -> str:
    """The first sentence of something's docstring, without its full stop."""
    paragraph = " ".join((inspect.getdoc(found) or "").partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".")


def described(plugin: type[Plugin]) -> str:
    """All that there is to know: how it is made, its kind, its fields with types and defaults, its docstring."""
    kind: Any = kind_of(plugin)
    lines = [call(plugin), f"  {kind.__name__}, {plugin.__module__}.{plugin.__qualname__}"]
    if kind is not Plugin:
        found: Any = plugin
        event = found.event.name if hasattr(found, "event") else "the forward pass"
        lines.append(f"  acts on {event}, by default where={found.default_where!r}")
    lines += ["", *(f"  {_field(field, plugin)}" for field in fields(plugin)), "", inspect.getdoc(plugin) or ""]
    return "\n".join(lines)


def _field(field: Field[Any], plugin: Any) -> str:
    given = plugin.default_where if field.name == "where" and hasattr(plugin, "default_where") else field.default
    default = "(needed)" if given is MISSING and field.default_factory is MISSING else f"= {given!r}"
    hint = field.type.__name__ if isinstance(field.type, type) else field.type
    return f"{field.name}: {hint} {default}"
