"""The plugin classes that installed distributions announce, by their names."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

from weightsmith.errors import ConfigurationError
from weightsmith.importing import looked_up
from weightsmith.plugin import Plugin, class_path
from weightsmith.spelling import nearest

__all__ = ["Announced", "Failure", "Registry", "plugin_class", "plugin_names", "registry", "subclasses"]

GROUP = "weightsmith.plugins"
"""The entry points: each names a plugin class, or a module, which announces the plugin classes in its ``__all__``."""


@dataclass(frozen=True)
class Announced:
    """A plugin class, and the distribution that announces it."""

    plugin: type[Plugin]
    distribution: str


@dataclass(frozen=True)
class Failure:
    """An entry point that could not be loaded, and why."""

    entry_point: str
    distribution: str
    reason: str

    def __str__(self) -> str:
        return f"{self.distribution}: its entry point {self.entry_point} cannot be loaded: {self.reason}"


@dataclass(frozen=True)
class Registry:
    """What is announced.

    Attributes:
        plugins: name to those who announce it; more than one is a clash.
        failures: the entry points that could not be loaded. They leave the others working.
    """

    plugins: dict[str, tuple[Announced, ...]]
    failures: tuple[Failure, ...]

    @classmethod
    def of(cls, entry_points: Iterable[metadata.EntryPoint]) -> Registry:
        """Load entry points, each on its own."""
        found: dict[str, dict[type[Plugin], Announced]] = {}
        failures: list[Failure] = []
        for point in entry_points:
            distribution = point.dist.name if point.dist is not None else "an unknown distribution"
            try:
                for plugin in _announced(point.load()):
                    found.setdefault(plugin.__name__, {}).setdefault(plugin, Announced(plugin, distribution))
            except (Exception, SystemExit) as error:  # whatever somebody's module raises when it is imported
                reason = f"{type(error).__name__}: {error}"
                failures.append(Failure(f"{point.name} = {point.value!r}", distribution, reason))
        return cls({name: tuple(classes.values()) for name, classes in sorted(found.items())}, tuple(failures))

    def clashes(self) -> list[str]:
        """What is wrong with names that several plugins have."""
        return [_clash(name, announced) for name, announced in self.plugins.items() if len(announced) > 1]


@functools.cache
def registry() -> Registry:
    """What the distributions that are installed announce."""
    return Registry.of(sorted(metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value)))


def plugin_class(name: Any) -> type[Plugin]:
    """The class of this name: an import path, the name of an announced plugin, or that of any imported by now.

    Raises:
        ConfigurationError: there is none, with the nearest names; or several, all named.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"{name!r} is no name of a plugin class")
    if "." in name:
        return _by_path(name)
    announced = registry().plugins.get(name, ())
    if len(announced) > 1:
        raise ConfigurationError(_clash(name, announced))
    others = [cls for cls in subclasses(Plugin) if cls.__name__ == name]
    classes = {entry.plugin for entry in announced} or set(others)
    if len(classes) == 1:
        return classes.pop()
    if classes:
        paths = ", ".join(sorted({f"{cls.__module__}.{cls.__qualname__}" for cls in classes}))
        raise ConfigurationError(f"several plugins are called {name!r}: write one of {paths}")
    failed = "".join(f"; {failure}" for failure in registry().failures)
    raise ConfigurationError(f"no plugin is called {name!r}{nearest(name, plugin_names())}{failed}")


def plugin_names() -> list[str]:
    """The short names of plugins that are known: announced, or imported by now."""
    return list(dict.fromkeys([*registry().plugins, *(cls.__name__ for cls in subclasses(Plugin))]))


def subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    """All classes below, that one can make something of."""
    for subclass in cls.__subclasses__():
        if not inspect.isabstract(subclass):
            yield subclass
        yield from subclasses(subclass)


def _by_path(path: str) -> type[Plugin]:
    found = looked_up(path)
    if isinstance(found, type) and issubclass(found, Plugin):
        return found
    raise ConfigurationError(f"{path!r} is no plugin class")


def _announced(found: Any) -> list[type[Plugin]]:
    """The plugin classes that an entry point's object stands for."""
    if isinstance(found, ModuleType):
        named = [getattr(found, name) for name in getattr(found, "__all__", [])]
        classes = [each for each in named if isinstance(each, type) and issubclass(each, Plugin)]
        if not classes:
            raise ConfigurationError(f"the module {found.__name__} has no plugin class in its __all__")
        return classes
    if isinstance(found, type) and issubclass(found, Plugin) and not inspect.isabstract(found):
        return [found]
    raise ConfigurationError(f"{found!r} is no plugin class, and no module of such")


def _clash(name: str, announced: Iterable[Announced]) -> str:
    known = " and ".join(f"{class_path(entry.plugin)} of {entry.distribution}" for entry in announced)
    return f"two plugins are called {name!r}: {known}; write the import path of one, or uninstall the other"
