"""Who raised? An exception inside a plugin keeps its type, and says which plugin, where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weightsmith.plugin import Plugin

__all__ = ["blame", "blaming", "is_blamed"]


@contextlib.contextmanager
def blaming(plugin: Plugin, where: str) -> Iterator[None]:
    """Note an exception with the plugin that raised it."""
    try:
        yield
    except Exception as error:
        blame(error, plugin, where)
        raise


def is_blamed(error: BaseException) -> bool:
    """Whether the exception was raised inside a plugin."""
    return "raised_in_plugin" in vars(error)


def blame(error: Exception, plugin: Plugin, where: str) -> None:
    """Note in an exception the plugin that raised it, unless one inside that plugin is to blame."""
    if not is_blamed(error):
        error.add_note(f"in {plugin!r} {where}")
        error.__dict__["raised_in_plugin"] = True
