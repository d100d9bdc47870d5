"""Who wrote where it should not? Copies compared around every handler, for ``Trainer(debug=True)``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from weightsmith.binding import Binding
from weightsmith.errors import PluginContractError
from weightsmith.events import WeightEvents
from weightsmith.handlers import PluginHandler

__all__ = ["WriteGuard"]

_WRITABLE = {
    WeightEvents.INITIALIZING.name: frozenset({"weight"}),
    WeightEvents.GRADIENTS_COMPUTED.name: frozenset({"gradient"}),
    WeightEvents.GRADIENTS_READY.name: frozenset({"gradient"}),
    WeightEvents.STEP_COMPLETED.name: frozenset({"weight"}),
    WeightEvents.WEIGHTS_EDITED.name: frozenset({"weight"}),
}
"""What handlers of an event may write; of the others, nothing."""

_WEIGHT_EVENTS = frozenset(WeightEvents)

Snapshot = dict[tuple[str, str], Tensor | None]


class WriteGuard:
    """Wraps handlers of weight events; a wrapped one raises if it writes where it should not."""

    def __init__(self, weights: Callable[[], dict[str, nn.Parameter]]) -> None:
        self._weights = weights

    def concerns(self, event: Any, handler: Callable[..., Any]) -> bool:
        """Whether to watch: every handler of a weight event, and a plugin's on whatever event."""
        return event in _WEIGHT_EVENTS or _binding(handler) is not None

    def watching(self, handler: Callable[..., Any], event: Any) -> WatchedHandler:
        return WatchedHandler(self, handler, getattr(event, "name", str(event)))

    def snapshot(self) -> Snapshot:
        taken: Snapshot = {}
        for name, parameter in self._weights().items():
            taken["weight", name] = parameter.detach().clone()
            taken["gradient", name] = None if parameter.grad is None else parameter.grad.detach().clone()
        return taken

    def compare(
        self, before: Snapshot, event: str, author: str, may_write: Callable[[str, str], bool], room: str
    ) -> None:
        """Raise where something has changed since ``before`` that is not in ``room``."""
        after = self.snapshot()
        for (what, name), old in before.items():
            if not _same(old, after[what, name]) and not may_write(what, name):
                raise PluginContractError(
                    f"{author} wrote to the {what} of {name!r} on {event}, where {room} may be written"
                )


class WatchedHandler:
    """A handler, watched. Equal to the handler itself, so that Ignite finds and removes it as usual."""

    def __init__(self, guard: WriteGuard, handler: Callable[..., Any], event: str) -> None:
        functools.update_wrapper(self, handler)
        self._guard, self._handler, self._event = guard, handler, event

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = self._guard.snapshot()
        result = self._handler(*args, **kwargs)
        binding = _binding(self._handler)
        if binding is not None:
            room = f"{_may(binding.plugin.writes)} of the weights it selects"
            self._guard.compare(before, self._event, repr(binding.plugin), binding.may_write, room)
        else:
            writes = _WRITABLE.get(self._event, frozenset())
            room = f"{_may(writes)} of any weight"
            self._guard.compare(before, self._event, _author(self._handler), lambda what, _: what in writes, room)
        return result

    def __eq__(self, other: object) -> bool:
        return self._handler == (other._handler if isinstance(other, WatchedHandler) else other)

    def __hash__(self) -> int:
        return hash(self._handler)


def _binding(handler: Callable[..., Any]) -> Binding | None:
    return handler.binding if isinstance(handler, PluginHandler) else None


def _author(handler: Callable[..., Any]) -> str:
    if isinstance(handler, PluginHandler):
        return repr(handler.plugin)
    return str(getattr(handler, "__qualname__", repr(handler)))


def _same(old: Tensor | None, new: Tensor | None) -> bool:
    if old is None or new is None:
        return old is new
    if old.is_sparse:
        old, new = old.to_dense(), new.to_dense()
    return old.shape == new.shape and bool(((old == new) | (old.isnan() & new.isnan())).all())


def _may(writes: frozenset[str]) -> str:
    return f"only the {' and the '.join(sorted(writes))}" if writes else "nothing"
