"""Who raised? An exception inside a plugin keeps its type, and says which plugin, where."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightsmith.binding import Binding
    from weightsmith.plugin import Plugin
    from weightsmith.trainer import Trainer

__all__ = ["PluginHandler", "blaming", "is_blamed"]


@contextlib.contextmanager
def blaming(plugin: Plugin, where: str) -> Iterator[None]:
    """Note an exception with the plugin that raised it."""
    try:
        yield
    except Exception as error:
        _blame(error, plugin, where)
        raise


def is_blamed(error: BaseException) -> bool:
    """Whether the exception was raised inside a plugin."""
    return "raised_in_plugin" in vars(error)


class PluginHandler:
    """A plugin's handler of one event, as the engine registers it.

    Attributes:
        plugin: whose handler it is.
        binding: the weights that the plugin selects; ``None`` if it selects none.
        event: the event's name.
    """

    def __init__(
        self, handler: Callable[..., Any], plugin: Plugin, binding: Binding | None, event: str, trainer: Trainer
    ) -> None:
        functools.update_wrapper(self, handler)
        self.plugin = plugin
        self.binding = binding
        self.event = event
        self._handler = handler
        self._trainer = trainer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._handler(*args, **kwargs)
        except StopIteration as error:  # Ignite's loop is a generator, in which Python lets none pass
            raise self._blamed(RuntimeError("the plugin raised StopIteration")) from error
        except Exception as error:
            self._blamed(error)
            raise

    def _blamed(self, error: Exception) -> Exception:
        state = self._trainer.state
        _blame(error, self.plugin, f"on {self.event}, update {state.update}, epoch {state.epoch}")
        return error


def _blame(error: Exception, plugin: Plugin, where: str) -> None:
    if not is_blamed(error):  # the innermost plugin is to blame
        error.add_note(f"in {plugin!r} {where}")
        error.__dict__["raised_in_plugin"] = True
