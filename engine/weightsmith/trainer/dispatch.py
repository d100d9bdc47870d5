"""Ignite's handlers, with what to call for each event found once, until they change."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from operator import is_not
from typing import Any, TypeAlias

from ignite.engine import Engine, EventEnum

__all__ = ["Handlers", "Table"]

Entry: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A handler as Ignite keeps it: with its arguments, of which the first is a weak reference to the engine if it takes
that."""
Call: TypeAlias = tuple[Callable[..., Any], bool]
"""What to call, and whether it takes the engine."""


class Handlers(dict[Any, list[Entry]]):
    """What Ignite keeps in a ``defaultdict``: the handlers of each event.

    Attributes:
        tables: what to call for an event, by the event's ``id``, which is found faster than the event, whose hash
            Python computes. Forgotten when the handlers of an event are replaced by other ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, Table] = {}

    def __missing__(self, event: Any) -> list[Entry]:
        handlers: list[Entry] = []
        self[event] = handlers
        return handlers

    def __setitem__(self, event: Any, handlers: list[Entry]) -> None:
        self.tables.clear()
        super().__setitem__(event, handlers)

    def look_up(self, event: Any) -> Table:
        """The table of an event that has none yet."""
        table = Table(event, self.get(event, []))
        if isinstance(event, EventEnum):  # which live as long as the engine; of other keys there may be ever new ones
            self.tables[id(event)] = table
        return table


class Table:
    """What to call for an event.

    Args:
        event: the event.
        handlers: Ignite's list, to which others may write at any time.
    """

    __slots__ = ("_calls", "_known", "event", "handlers")

    def __init__(self, event: Any, handlers: list[Entry]) -> None:
        self.event = event
        self.handlers = handlers
        self._known: list[Entry] = []
        self._calls: tuple[Call, ...] = ()

    def call_all(self, engine: Engine) -> None:
        """Call the handlers in their order; one that a handler adds to the same event is called as well."""
        done = 0
        while done < len(self.handlers):
            if len(self._known) != len(self.handlers) or any(map(is_not, self._known, self.handlers)):
                self._known = list(self.handlers)
                self._calls = tuple(_call_of(entry, engine) for entry in self._known)
            calls = self._calls[done:] if done else self._calls
            done += len(calls)
            for handler, takes_engine in calls:
                if takes_engine:
                    handler(engine)
                else:
                    handler()


def _call_of(entry: Entry, engine: Engine) -> Call:
    """A call with the engine, or with nothing, in place of a handler with arguments."""
    handler, args, kwargs = entry
    takes_engine = bool(args) and isinstance(args[0], weakref.ref) and args[0]() is engine
    own = args[1:] if takes_engine else args
    if not own and not kwargs:
        return handler, takes_engine
    if takes_engine:
        return (lambda engine: handler(engine, *own, **kwargs)), True
    return (lambda: handler(*map(_resolved, own[:1]), *own[1:], **kwargs)), False


def _resolved(argument: Any) -> Any:
    """A handler's first argument: of a weak reference, by which Ignite keeps engines, what it refers to."""
    if not isinstance(argument, weakref.ref):
        return argument
    found = argument()
    if found is None:
        raise RuntimeError("Engine reference not resolved. Cannot execute event handler.")
    return found
