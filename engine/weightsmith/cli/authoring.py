"""``new plugin``, ``new package`` and ``check``: for whoever writes plugins."""

from __future__ import annotations

from pathlib import Path

from weightsmith import scaffold
from weightsmith.scaffold import Kind
from weightsmith.testing import check_plugins

__all__ = ["check", "new_package", "new_plugin"]


def new_plugin(name: str, *, kind: Kind = "constraint", folder: Path = Path()) -> None:
    """Write a plugin that works, and its tests: ``unit_ball.py`` and ``test_unit_ball.py``, for you to change.

    Args:
        name: such as UnitBall.
        kind: what it is.
        folder: where to write.
    """
    _print_paths(scaffold.new_plugin(name, kind=kind, folder=folder))


def new_package(name: str, *, kind: Kind = "constraint", folder: Path = Path()) -> None:
    """Write an installable distribution with one plugin, which weightsmith finds once it is installed.

    Args:
        name: such as unit-ball.
        kind: what the plugin is.
        folder: where the distribution's own folder goes.
    """
    _print_paths(scaffold.new_package(name, kind=kind, folder=folder))


def check(path: str) -> int:
    """Put plugins through the conformance suite, and say in plain words what is wrong, and where. The exit code is 0 if
    nothing is, else 1.

    Args:
        path: a Python file with plugins (or with their tests), a folder of such, or a module's dotted name.
    """
    report = check_plugins(path)
    print(report)
    return int(not report.passed)


def _print_paths(paths: list[Path]) -> None:
    for path in paths:
        print(path)
