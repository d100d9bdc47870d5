"""A plugin's handler of one event: blamed for what it raises, announced to whoever wants to know what it did, and named
to torch's profiler."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.autograd import profiler

from weightsmith.events import WeightEvents
from weightsmith.faults import blame

if TYPE_CHECKING:
    from weightsmith.binding import Binding
    from weightsmith.plugin import Plugin
    from weightsmith.trainer import Trainer

__all__ = ["ANNOUNCEMENTS", "PluginHandler"]

ANNOUNCEMENTS = frozenset({WeightEvents.PLUGIN_STARTED, WeightEvents.PLUGIN_COMPLETED})


class PluginHandler:
    """A plugin's handler of one event, as the engine registers it; while it runs, ``state.acting``.

    Attributes:
        plugin: whose handler it is.
        name: the plugin's class, and its number among the acting plugins of that name: ``"L2"``, ``"L2.1"``; under it
            Ignite's profilers list the handler.
        binding: the weights that the plugin selects; ``None`` if it selects none.
        event: the event's name.
        outer: the handler inside which it runs; ``None`` if there is none.
    """

    def __init__(
        self, handler: Callable[..., Any], plugin: Plugin, binding: Binding | None, event: str, trainer: Trainer
    ) -> None:
        functools.update_wrapper(self, handler)
        self.plugin = plugin
        self.name = type(plugin).__name__
        self.binding = binding
        self.event = event
        self.outer: PluginHandler | None = None
        self._handler = handler
        self._trainer = trainer
        self._is_told = event in (announcement.name for announcement in ANNOUNCEMENTS)

    @property
    def name(self) -> str:
        return self.__qualname__

    @name.setter
    def name(self, name: str) -> None:
        self.__qualname__ = name

    def may_write(self, what: str, name: str) -> bool:
        """Whether the plugin may write the ``"weight"`` or the ``"gradient"`` of this raw parameter. One that selects
        no weights may write any."""
        return self.binding is None or self.binding.may_write(what, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            is_announced = self._trainer._announces and not self._is_told
            if is_announced or profiler._is_profiler_enabled:
                return self._watched(is_announced, *args, **kwargs)
            return self._handler(*args, **kwargs)
        except StopIteration as error:  # Ignite's loop is a generator, in which Python lets none pass
            raise self._blamed(RuntimeError("the plugin raised StopIteration")) from error
        except Exception as error:
            self._blamed(error)
            raise

    def _watched(self, is_announced: bool, *args: Any, **kwargs: Any) -> Any:
        if self.binding is not None and self._handler == self.binding.run and not self.binding.acts_now():
            return None
        if self.binding is not None and self._handler == self.binding.begin:
            return self._handler(*args, **kwargs)  # begins to remember, and does nothing
        return self._announced(*args, **kwargs) if is_announced else self._recorded(*args, **kwargs)

    def _announced(self, *args: Any, **kwargs: Any) -> Any:
        state = self._trainer.state
        outer = state.acting
        self.outer, state.acting = outer, self
        try:
            self._trainer._announce(WeightEvents.PLUGIN_STARTED)
            result = self._recorded(*args, **kwargs)
            self.outer = outer  # one that evaluates the update again runs inside itself
            self._trainer._announce(WeightEvents.PLUGIN_COMPLETED)
            return result
        finally:
            self.outer, state.acting = None, outer

    def _recorded(self, *args: Any, **kwargs: Any) -> Any:
        if not profiler._is_profiler_enabled:
            return self._handler(*args, **kwargs)
        with profiler.record_function(f"{self.event}#{self.name}"):  # as torch's "Optimizer.step#Adam.step"
            return self._handler(*args, **kwargs)

    def _blamed(self, error: Exception) -> Exception:
        state = self._trainer.state
        blame(error, self.plugin, f"on {self.event}, update {state.update}, epoch {state.epoch}")
        return error
