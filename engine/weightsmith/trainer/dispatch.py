"""Ignite's handlers, each with the call that it comes to, so that nothing is left to find out when an event fires."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from ignite.engine import Engine, EventEnum

__all__ = ["Call", "Handlers"]

Entry: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A handler as Ignite keeps it: with its arguments, of which the first is a weak reference to the engine if it takes
that."""
Call: TypeAlias = Callable[[], Any]
"""A handler that has its arguments."""


class Handlers(dict[Any, "list[Entry]"]):
    """What Ignite keeps in a ``defaultdict``: the handlers of each event.

    Args:
        engine: whose handlers they are.

    Attributes:
        calls: what to call for an event, by the event's ``id``, which is found faster than the event, whose hash
            Python computes. Forgotten when the handlers of an event are replaced by other ones.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self.calls: dict[int, Sequence[Call]] = {}

    def __missing__(self, event: Any) -> list[Entry]:
        self[event] = []
        return self[event]

    def __setitem__(self, event: Any, handlers: Iterable[Entry]) -> None:
        self.calls.clear()
        super().__setitem__(event, _OfEvent(handlers, self._engine))

    def look_up(self, event: Any) -> Sequence[Call]:
        """What to call for an event that is not among :attr:`calls`; if a handler adds another while they are called,
        it is among them."""
        handlers = self.get(event)
        calls = handlers.calls if isinstance(handlers, _OfEvent) else ()
        if isinstance(event, EventEnum):  # which live as long as the engine; of other keys there may be ever new ones
            self.calls[id(event)] = calls
        return calls

    def look_again(self, event: Any) -> None:
        """Ignite has changed the arguments of an event's handlers."""
        if event in self:
            self[event][:] = self[event]


class _OfEvent(list[Entry]):
    """Ignite's list of an event's handlers, to which others may write at any time, and their calls, in step with it.

    Attributes:
        calls: changed as the list is, so that who goes through it meets what Ignite would, going through the list.
    """

    def __init__(self, handlers: Iterable[Entry], engine: Engine) -> None:
        super().__init__(handlers)
        self._engine = engine
        self.calls = [_call_of(entry, engine) for entry in self]

    def append(self, entry: Entry) -> None:
        super().append(entry)
        self.calls.append(_call_of(entry, self._engine))


def _in_step(change: Callable[..., Any]) -> Callable[..., Any]:
    """A method of lists that changes one; the calls follow."""

    @functools.wraps(change)
    def changing(handlers: _OfEvent, *args: Any, **kwargs: Any) -> Any:
        try:
            return change(handlers, *args, **kwargs)
        finally:
            handlers.calls[:] = [_call_of(entry, handlers._engine) for entry in handlers]

    return changing


for _change in (
    *(list.__setitem__, list.__delitem__, list.__iadd__, list.__imul__),
    *(list.clear, list.extend, list.insert, list.pop, list.remove, list.reverse, list.sort),
):
    setattr(_OfEvent, _change.__name__, _in_step(_change))


def _call_of(entry: Entry, engine: Engine) -> Call:
    """A handler with its arguments."""
    handler, args, kwargs = entry
    takes_engine = bool(args) and isinstance(args[0], weakref.ref) and args[0]() is engine
    own = args[1:] if takes_engine else args
    if not own and not kwargs:
        return functools.partial(handler, engine) if takes_engine else handler
    if takes_engine:
        return lambda: handler(engine, *own, **kwargs)
    return lambda: handler(*map(_resolved, own[:1]), *own[1:], **kwargs)


def _resolved(argument: Any) -> Any:
    """A handler's first argument: of a weak reference, by which Ignite keeps engines, what it refers to."""
    if not isinstance(argument, weakref.ref):
        return argument
    found = argument()
    if found is None:
        raise RuntimeError("Engine reference not resolved. Cannot execute event handler.")
    return found
