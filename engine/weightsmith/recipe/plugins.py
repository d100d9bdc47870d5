"""Plugins from plain data, as YAML holds it; the way back from :meth:`Plugin.to_plain`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from weightsmith import schedules
from weightsmith.discovery import plugin_class, plugin_names
from weightsmith.errors import ConfigurationError, WeightsmithError
from weightsmith.importing import looked_up
from weightsmith.plugin import Plugin
from weightsmith.recipe.names import indented, is_long_form, name_and_settings
from weightsmith.recipe.text import Problems, located
from weightsmith.spelling import closest, nearest

__all__ = ["first_field", "from_plain"]


def from_plain(plain: Any) -> Plugin:
    """The plugin that plain data describes: ``{"MaxNorm": {"limit": 3}}``, ``{"L2": 1e-4}`` (the first field), or
    ``"ZeroMean"`` (no fields); or ``{"class_path": "MaxNorm", "init_args": {"limit": 3}}``.

    The class is named by import path, or by name if a distribution announces it, or if it is imported by now.

    Raises:
        ConfigurationError: no such class, or no such field; the message names the nearest, and file and line where
            they are known.
    """
    if not (isinstance(plain, str) or is_long_form(plain) or (isinstance(plain, Mapping) and len(plain) == 1)):
        mend = indented(plain) or "write one class name, then its fields"
        raise ConfigurationError(f"{plain!r} describes no plugin: {mend}")
    name, settings = name_and_settings(plain)
    with located(plain, name if isinstance(name, str) else None):
        cls = plugin_class(name)
        if settings is None or isinstance(settings, Mapping):
            return _made(cls, settings or {})
        return _made(cls, {first_field(cls): settings})


def first_field(cls: type[Plugin]) -> str:
    """The field that a value alone means."""
    own = [field.name for field in fields(cls) if not field.kw_only]
    if not own:
        raise ConfigurationError(f"{cls.__name__} has no field of its own, so write `field: value`, not a value alone")
    return own[0]


def _made(cls: type[Plugin], settings: Mapping[Any, Any]) -> Plugin:
    known = [field.name for field in fields(cls)]
    problems = Problems()
    values: dict[str, Any] = {}
    for field, value in settings.items():
        with problems.gathering(settings, field):
            if field not in known:
                raise ConfigurationError(f"{cls.__name__} has no field {field!r}{nearest(str(field), known)}")
            values[field] = value if field == "where" else _value(value)
    problems.raise_any()
    try:
        return cls(**values)
    except WeightsmithError as error:
        with located(settings, getattr(error, "field", None)):
            raise
    except Exception as error:  # whatever a value of another type meets first
        raise ConfigurationError(f"{cls.__name__}: {dict(settings)!r} does not fit its fields: {error}") from error
    raise AssertionError("unreachable")


def _value(plain: Any) -> Any:
    if isinstance(plain, (list, tuple)):
        return tuple(_value(item) for item in plain)
    if not isinstance(plain, Mapping):
        return plain
    if is_long_form(plain):
        return from_plain(plain)
    if len(plain) == 1:
        ((name, arguments),) = plain.items()
        if name == "import":
            return looked_up(arguments)
        with located(plain, name):
            schedule = schedules.from_plain(name, arguments) if isinstance(name, str) else None
            if schedule is None:
                _refuse_misspelt_schedule(name)
        return schedule if schedule is not None else from_plain(plain)
    mend = indented(plain) or "write one name, then its settings"
    raise ConfigurationError(f"{dict(plain)!r} is no schedule, plugin or {{import: path}}: {mend}")


def _refuse_misspelt_schedule(name: Any) -> None:
    """Raise where a schedule is nearer to a name than any plugin is."""
    near = closest(str(name), [*schedules.NAMES, *plugin_names()])
    if near in schedules.NAMES:
        raise ConfigurationError(f"no schedule is called {name!r}: did you mean {near!r}?")
