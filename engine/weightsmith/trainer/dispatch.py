"""Ignite's lists of handlers, found faster than by the event."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from ignite.engine import EventEnum

__all__ = ["Entry", "Handlers", "call"]

Entry: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A handler as Ignite keeps it: with its arguments, of which the first is a weak reference to the engine if it takes
that."""


class Handlers(dict[Any, list[Entry]]):
    """What Ignite keeps in a ``defaultdict``: the handlers of each event.

    Attributes:
        by_id: some of the lists, by the ``id`` of their event: of an event itself Python computes the hash. Forgotten
            whenever one of them has another list, or none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_id: dict[int, list[Entry]] = {}
        self._known: list[EventEnum] = []
        """Whose ``id`` nobody else has as long as they are here."""

    def __missing__(self, event: Any) -> list[Entry]:
        handlers: list[Entry] = []
        self[event] = handlers
        return handlers

    def look_up(self, event: Any) -> list[Entry]:
        """The handlers of an event that is not among :attr:`by_id`."""
        handlers = self[event]
        if isinstance(event, EventEnum):  # of which there are a few; of other keys there may be ever new ones
            self._known.append(event)
            self.by_id[id(event)] = handlers
            if self.get(event) is not handlers:  # another thread has replaced it meanwhile
                self._forget()
        return handlers

    def _forget(self) -> None:
        self.by_id.clear()
        self._known.clear()

    def __reduce__(self) -> tuple[type, tuple[()], None, None, Iterator[tuple[Any, list[Entry]]]]:
        return type(self), (), None, None, iter(self.items())  # a copy has other lists


def _forgetting(change: Callable[..., Any]) -> Callable[..., Any]:
    """A method of dicts that changes one."""

    @functools.wraps(change)
    def changing(handlers: Handlers, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return change(handlers, *args, **kwargs)
        finally:
            handlers._forget()

    return changing


for _change in (
    *(dict.__setitem__, dict.__delitem__, dict.__ior__),
    *(dict.clear, dict.pop, dict.popitem, dict.update),
):
    setattr(Handlers, _change.__name__, _forgetting(_change))


def call(handler: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Call a handler with what Ignite keeps for it."""
    if args and isinstance(args[0], weakref.ref):
        first = args[0]()
        if first is None:
            raise RuntimeError("Engine reference not resolved. Cannot execute event handler.")
        handler(first, *args[1:], **kwargs)
    else:
        handler(*args, **kwargs)
