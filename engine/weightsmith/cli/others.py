"""The commands that installed distributions add."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Container, Iterator
from dataclasses import dataclass
from importlib import metadata

from weightsmith.cli.parsing import Command, parser_of
from weightsmith.errors import ConfigurationError

__all__ = ["others"]

GROUP = "weightsmith.commands"
"""The entry points that add commands: each names a function that returns an exit code, or ``None``."""

_OWN = "weightsmith"


@dataclass(frozen=True)
class _Added:
    """A command, and the distribution that adds it."""

    command: Command
    distribution: str


def others(own: Container[str]) -> dict[str, Command]:
    """The commands that distributions add, by name. One that cannot be used is reported on stderr, and leaves the
    others working: it cannot be loaded, is no function whose type hints can be resolved, or another has its name.

    Args:
        own: names that are taken.
    """
    found: dict[str, list[_Added]] = {}
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        for added in _loaded(point):
            same = found.setdefault(point.name, [])
            if all(added.command is not other.command for other in same):
                same.append(added)
    return {name: added.command for name, several in found.items() for added in _chosen(name, several, own)}


def _loaded(point: metadata.EntryPoint) -> Iterator[_Added]:
    """The command of an entry point, if it can be used."""
    distribution = point.dist.name if point.dist is not None else "an unknown distribution"
    try:
        command = point.load()
        if not inspect.isroutine(command):
            raise ConfigurationError(f"{point.value} is no function")
        parser_of(command)
    except (Exception, SystemExit) as error:  # whatever somebody's module raises when it is imported
        _warn(distribution, f"its command {point.name} cannot be loaded: {type(error).__name__}: {error}")
        return
    yield _Added(command, distribution)


def _chosen(name: str, several: list[_Added], own: Container[str]) -> Iterator[_Added]:
    """The one that has the name: weightsmith's, else the only one."""
    ours = [added for added in several if added.distribution == _OWN]
    if name in own or ours:
        for added in several:
            if added not in ours:
                _warn(added.distribution, f"its command {name} is left out, as weightsmith has one of that name")
        yield from ours
        return
    if len(several) > 1:
        _warn(", ".join(added.distribution for added in several), f"each has a command {name}: uninstall all but one")
        return
    yield from several


def _warn(distribution: str, problem: str) -> None:
    print(f"warning: {distribution}: {problem}", file=sys.stderr)
