"""Plugins from plain data, as YAML holds it; the way back from :meth:`Plugin.to_plain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from weightsmith import schedules
from weightsmith.errors import ConfigurationError, WeightsmithError
from weightsmith.importing import imported
from weightsmith.plugin import Plugin, nearest

__all__ = ["from_plain"]


def from_plain(plain: Mapping[str, Any]) -> Plugin:
    """The plugin that ``{"MaxNorm": {"limit": 3}}`` describes: the class by import path, or by name once imported.

    Raises:
        ConfigurationError: no such class, or no such field; the message names the nearest.
    """
    if not isinstance(plain, Mapping) or len(plain) != 1:
        raise ConfigurationError(f"{plain!r} describes no plugin: write one class name, then its fields")
    ((name, settings),) = plain.items()
    cls = _plugin_class(name)
    if not isinstance(settings, Mapping | None) or not all(isinstance(field, str) for field in settings or ()):
        raise ConfigurationError(f"{name}: {settings!r} are no fields: write `field: value` for each")
    try:
        return cls(**{field: value if field == "where" else _value(value) for field, value in (settings or {}).items()})
    except WeightsmithError:
        raise
    except Exception as error:  # whatever a value of another type meets first
        raise ConfigurationError(f"{name}: {dict(settings or {})!r} does not fit its fields: {error}") from error


def _value(plain: Any) -> Any:
    if isinstance(plain, (list, tuple)):
        return tuple(_value(item) for item in plain)
    if not isinstance(plain, Mapping):
        return plain
    if len(plain) == 1:
        ((name, arguments),) = plain.items()
        if name == "import":
            return imported(arguments)
        schedule = schedules.from_plain(name, arguments)
        return schedule if schedule is not None else from_plain(plain)
    raise ConfigurationError(
        f"{dict(plain)!r} is no schedule, plugin or {{import: path}}: write one name, then its settings"
    )


def _plugin_class(name: Any) -> type[Plugin]:
    if not isinstance(name, str):
        raise ConfigurationError(f"{name!r} is no name of a plugin class")
    if "." in name:
        found = imported(name)
        if isinstance(found, type) and issubclass(found, Plugin):
            return found
        raise ConfigurationError(f"{name!r} is no plugin class")
    known = list(_subclasses(Plugin))
    named = [cls for cls in known if cls.__name__ == name]
    if len(named) == 1:
        return named[0]
    if named:
        paths = ", ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in named)
        raise ConfigurationError(f"several plugins are called {name!r}: write one of {paths}")
    raise ConfigurationError(f"no plugin is called {name!r}{nearest(name, [cls.__name__ for cls in known])}")


def _subclasses(cls: type[Any]) -> Iterator[type[Plugin]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
