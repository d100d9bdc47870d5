"""The plugins of one trainer: bound to its weights, connected to its events, in the order of their kinds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ignite.engine import Events
from ignite.engine.events import EventsList

from weightsmith.binding import Binding
from weightsmith.errors import ConfigurationError, ConflictError
from weightsmith.events import WeightEvents
from weightsmith.kinds import Constraint, Initializer, WeightPlugin
from weightsmith.plan import Plan, PlanRow
from weightsmith.plugin import Plugin, Subscription, class_path
from weightsmith.weights import Weight, inventory

if TYPE_CHECKING:
    from weightsmith.trainer import Trainer

__all__ = ["Attachments"]

logger = logging.getLogger(__name__)


@dataclass
class Attachment:
    """One attached plugin.

    Attributes:
        plugin: the plugin.
        binding: its weights; ``None`` for a plugin that selects none.
        subscriptions: what it yielded.
        registered: the handlers as the engine holds them, by which their order is kept.
    """

    plugin: Plugin
    binding: Binding | None = None
    subscriptions: list[Subscription] = field(default_factory=list)
    registered: list[Any] = field(default_factory=list)


class Attachments:
    """Attaches, orders and detaches plugins."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._attached: list[Attachment] = []
        self._attaching: Attachment | None = None
        self._postponed: list[Callable[[], None]] = []
        self._own = _registered_handlers(trainer)

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        return tuple(attachment.plugin for attachment in self._attached)

    def bindings(self, kind: type[Any]) -> Iterator[Binding]:
        """The bindings of all plugins of a kind."""
        for attachment in self._attached:
            if isinstance(attachment.plugin, kind) and attachment.binding is not None:
                yield attachment.binding

    def the(self, kind: type[Any], plugin: Plugin | None) -> Binding:
        """The binding of ``plugin``, or of the only one of its kind."""
        found = [binding for binding in self.bindings(kind) if plugin is None or binding.plugin == plugin]
        if len(found) == 1:
            return found[0]
        wanted = f"{kind.__name__.lower()}" if plugin is None else repr(plugin)
        raise ConfigurationError(
            f"{len(found)} plugins fit {wanted!r}: name one of those attached, "
            f"{', '.join(repr(binding.plugin) for binding in self.bindings(kind)) or 'none'}"
        )

    # ---------------------------------------------------------------- attaching

    def attach(self, plugin: Plugin) -> None:
        if not isinstance(plugin, Plugin):
            raise ConfigurationError(f"{plugin!r} is no plugin: derive its class from one of weightsmith's kinds")
        if isinstance(plugin, Initializer) and self._trainer._initialized and plugin.at is None:
            raise ConfigurationError(
                f"{plugin!r} was attached after the start, when initializers have run: attach it before run()"
            )
        attachment = self._attaching = Attachment(plugin)
        try:
            attachment.subscriptions = [
                (event, handler)
                for events, handler in plugin.subscriptions(self._trainer)
                for event in (events if isinstance(events, EventsList) else [events])
            ]
            for event, _ in attachment.subscriptions:
                self._refuse_unknown(plugin, event)
        except Exception:
            if attachment.binding is not None:
                attachment.binding.release()
            raise
        finally:
            self._attaching = None
        self._attached.append(attachment)
        self._refresh()
        self._soon(lambda: self._connect(attachment))

    def bind(self, plugin: WeightPlugin) -> Binding:
        """The binding of the plugin that is being attached."""
        attachment = self._attaching
        if attachment is None or attachment.plugin is not plugin:
            raise ConfigurationError("bind() is for a plugin's own subscriptions(), while it is attached")
        taken = {binding.label for binding in self.bindings(Plugin)}
        label = next(name for name in _labels(plugin) if name not in taken)
        binding = Binding(plugin, label, f"{self._trainer.seed}|{label}", self._trainer)
        binding.refresh(self._inventory(), self._trainer.optimizers)
        self._refuse_idle(binding)
        self._refuse_second_constraint(binding)
        attachment.binding = binding
        return binding

    def detach(self, plugin: Plugin) -> None:
        same = [a for a in self._attached if a.plugin is plugin] or [a for a in self._attached if a.plugin == plugin]
        if not same:
            raise ConfigurationError(f"{plugin!r} is not attached: there are {', '.join(map(repr, self.plugins))}")
        attachment = same[0]
        if attachment.binding is not None:
            attachment.binding.release()
        self._attached.remove(attachment)
        self._refresh()
        self._soon(lambda: self._disconnect(attachment))

    def settle(self) -> None:
        """Carry out what was postponed while an update was in progress."""
        while self._postponed:
            self._postponed.pop(0)()

    def _soon(self, change: Callable[[], None]) -> None:
        if self._trainer.state.optimizer is None:
            change()
        else:
            self._postponed.append(change)

    def _connect(self, attachment: Attachment) -> None:
        handlers = self._trainer._event_handlers
        for event, handler in attachment.subscriptions:
            self._trainer.add_event_handler(event, handler)
            attachment.registered.append(handlers[event][-1][0])
        self._sort()

    def _disconnect(self, attachment: Attachment) -> None:
        for event, handler in attachment.subscriptions:
            self._trainer.remove_event_handler(handler, event)

    def _sort(self) -> None:
        """The engine's own handlers first, then plugins by kind and in the list's order, then everybody else's."""
        places = {id(handler): (-1, 0) for handler in self._own}
        for position, attachment in enumerate(self._attached):
            places |= {id(handler): (attachment.plugin.order, position) for handler in attachment.registered}
        for handlers in self._trainer._event_handlers.values():
            handlers.sort(key=lambda entry: places.get(id(entry[0]), (1000, 0)))

    def _inventory(self) -> list[Weight]:
        return inventory(self._trainer.models, self._trainer.optimizers)

    def _refresh(self) -> None:
        """Look at the weights anew: a plugin may have parametrized some."""
        weights = self._inventory()
        for binding in self.bindings(Plugin):
            binding.refresh(weights, self._trainer.optimizers)

    # ---------------------------------------------------------------- refusing

    def _refuse_unknown(self, plugin: Plugin, event: Any) -> None:
        if not self._trainer.has_registered_events(event):
            raise ConfigurationError(f"{plugin!r} subscribes to {event!r}, which is no event of this trainer")

    def _refuse_idle(self, binding: Binding) -> None:
        idle = [weight.name for weight in binding.weights if weight.optimizer is None]
        if isinstance(binding.plugin, Constraint):
            if idle:
                logger.warning(
                    "%r: no optimizer holds %s; the constraint is enforced at the start only", binding.plugin, idle
                )
        elif binding.plugin.uses_gradients and len(idle) == len(binding.weights):
            raise ConfigurationError(
                f"{binding.plugin!r} selects only weights that no optimizer holds, such as {idle[0]!r}: "
                "it would never act"
            )

    def _refuse_second_constraint(self, binding: Binding) -> None:
        if not isinstance(binding.plugin, Constraint):
            return
        for other in self.bindings(Constraint):
            held = {id(parameter) for weight in other.weights for parameter in weight.raw}
            for weight in binding.weights:
                if any(id(parameter) in held for parameter in weight.raw):
                    raise ConflictError(
                        f"two constraints claim the weight {weight.name!r}: {other.plugin!r} and {binding.plugin!r}. "
                        "The one that acts last would break the other: give them different weights with `where`"
                    )

    # ---------------------------------------------------------------- looking and saving

    def plan(self) -> Plan:
        rows = []
        for attachment in self._attached:
            events = [event.name for event, _ in attachment.subscriptions] or ["FORWARD"]
            rows += [(event, attachment) for event in events]
        position = {id(attachment): i for i, attachment in enumerate(self._attached)}
        rows.sort(key=lambda row: (_PLACE.get(row[0], len(_PLACE)), row[1].plugin.order, position[id(row[1])]))
        return Plan(tuple(_row(event, attachment) for event, attachment in rows))

    def state_dict(self) -> dict[str, Any]:
        states = {binding.label: binding.state_dict() for binding in self.bindings(Plugin)}
        return {label: state for label, state in states.items() if state}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        bindings = {binding.label: binding for binding in self.bindings(Plugin)}
        for label, state in states.items():
            unknown = [label] if label not in bindings else sorted(state.keys() - bindings[label].names())
            if unknown:
                raise ConfigurationError(f"the saved state of {label!r} does not fit: nothing here is called {unknown}")
        for label, state in states.items():
            bindings[label].load_state_dict(state)


_PLACE = {
    name: place
    for place, name in enumerate(
        [
            "FORWARD",
            Events.STARTED.name,
            WeightEvents.INITIALIZING.name,
            Events.EPOCH_STARTED.name,
            Events.GET_BATCH_STARTED.name,
            Events.GET_BATCH_COMPLETED.name,
            Events.ITERATION_STARTED.name,
            WeightEvents.MICROBATCH_COMPLETED.name,
            WeightEvents.GRADIENTS_COMPUTED.name,
            WeightEvents.GRADIENTS_READY.name,
            WeightEvents.STEP_COMPLETED.name,
            WeightEvents.WEIGHTS_EDITED.name,
            WeightEvents.UPDATE_COMPLETED.name,
            Events.ITERATION_COMPLETED.name,
            Events.EPOCH_COMPLETED.name,
            WeightEvents.MEASURED.name,
            Events.COMPLETED.name,
        ]
    )
}


def _row(event: str, attachment: Attachment) -> PlanRow:
    plugin, binding = attachment.plugin, attachment.binding
    if binding is None:
        return PlanRow(event, repr(plugin), "", ())
    idle = [weight.name for weight in binding.weights if weight.optimizer is None]
    note = f"in no optimizer: {', '.join(idle)}" if idle and binding.plugin.uses_gradients else ""
    if idle and isinstance(plugin, Constraint):
        note = f"in no optimizer, so enforced at the start only: {', '.join(idle)}"
    return PlanRow(event, repr(plugin), binding.plugin.limits(), tuple(w.name for w in binding.weights), note)


def _labels(plugin: Plugin) -> Iterator[str]:
    name = class_path(type(plugin))
    yield name
    number = 1
    while True:
        yield f"{name}#{number}"
        number += 1


def _registered_handlers(trainer: Trainer) -> list[Any]:
    return [entry[0] for handlers in trainer._event_handlers.values() for entry in handlers]
