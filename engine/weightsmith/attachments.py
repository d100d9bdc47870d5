"""The plugins of one trainer: bound to its weights, connected to its events, in the order of their kinds."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Events
from ignite.engine.events import EventsList
from torch import Tensor

from weightsmith.attachment import Attachment
from weightsmith.binding import Binding
from weightsmith.errors import ConfigurationError, ConflictError, SelectionError
from weightsmith.faults import blaming
from weightsmith.handlers import PluginHandler
from weightsmith.kinds import Constraint, Initializer, WeightPlugin
from weightsmith.optimizers import held_by
from weightsmith.plan import Plan
from weightsmith.planning import names_without, plan_rows, shaped_by
from weightsmith.plugin import DETACHED, KEPT, Plugin, class_path
from weightsmith.selection import select
from weightsmith.weights import Weight, inventory, raw_weights

if TYPE_CHECKING:
    from weightsmith.trainer import Trainer

__all__ = ["Attachments"]

logger = logging.getLogger(__name__)


class Attachments:
    """Attaches, orders and detaches plugins.

    What was attached and not detached is *listed*; it *acts* from the next update on. The two differ only while an
    update is in progress.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._listed: list[Attachment] = []
        self._acting: list[Attachment] = []
        self._attaching: Attachment | None = None
        self._postponed: list[Callable[[], None]] = []
        self._own = _registered_handlers(trainer)
        self._held: list[list[int]] = []

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        return tuple(attachment.plugin for attachment in self._listed)

    def bindings(self, kind: type[Any]) -> Iterator[Binding]:
        """The bindings of all acting plugins of a kind."""
        return _bindings(self._acting, kind)

    def the(self, kind: type[Any], plugin: Plugin | None) -> Binding:
        """The binding of ``plugin``, or of the only one of its kind."""
        found = [binding for binding in self.bindings(kind) if plugin is None or binding.plugin == plugin]
        if len(found) == 1:
            return found[0]
        attached = ", ".join(repr(binding.plugin) for binding in self.bindings(kind))
        if not attached:
            raise ConfigurationError(f"no plugin of the kind {kind.__name__} is attached: attach one before the run")
        wanted = f"an {kind.__name__}" if plugin is None else repr(plugin)
        raise ConfigurationError(f"{len(found)} attached plugins are {wanted}: name one of those attached, {attached}")

    # ---------------------------------------------------------------- attaching

    def attach(self, plugin: Plugin) -> None:
        if isinstance(plugin, type) and issubclass(plugin, Plugin):
            raise ConfigurationError(f"{plugin.__name__} is a class: attach a plugin made of it, {plugin.__name__}(…)")
        if not isinstance(plugin, Plugin):
            raise ConfigurationError(f"{plugin!r} is no plugin: derive its class from one of weightsmith's kinds")
        if isinstance(plugin, Initializer) and self._trainer._initialized and plugin.at is None:
            raise ConfigurationError(
                f"{plugin!r} was attached after the start, when initializers have run: attach it before run()"
            )
        if plugin in self.plugins:
            logger.warning("%r is attached already: attached twice, it acts twice", plugin)
        attachment = self._attaching = Attachment(plugin)
        try:
            self._subscribe(attachment)
        finally:
            self._attaching = None
        self._refuse_stepping_on_others(attachment)
        self._listed.append(attachment)
        self._soon(lambda: self._begin(attachment))

    def bind(self, plugin: WeightPlugin) -> Binding:
        """The binding of the plugin that is being attached."""
        attachment = self._attaching
        if attachment is None or attachment.plugin is not plugin:
            raise ConfigurationError("bind() is for a plugin's own subscriptions(), while it is attached")
        binding = attachment.binding = Binding(plugin, self._trainer)
        binding.refresh(self._inventory(), self._trainer.optimizers)
        self._refuse_idle(binding)
        self._refuse_second_constraint(binding)
        return binding

    def detach(self, plugin: Plugin) -> None:
        same = [a for a in self._listed if a.plugin is plugin] or [a for a in self._listed if a.plugin == plugin]
        if not same:
            attached = ", ".join(map(repr, self.plugins)) or "nothing"
            raise ConfigurationError(f"{plugin!r} is not attached; attached is {attached}")
        attachment = same[0]
        if attachment.binding is not None:
            attachment.binding.layers.refuse_release()
            self._refuse_to_strand_others(attachment.binding)
        self._listed.remove(attachment)
        self._soon(lambda: self._end(attachment))

    def settle(self) -> None:
        """Carry out what was postponed while an update was in progress."""
        while self._postponed:
            self._postponed.pop(0)()

    def _soon(self, change: Callable[[], None]) -> None:
        if self._trainer.state.optimizer is None:
            change()
        else:
            self._postponed.append(change)

    def _subscribe(self, attachment: Attachment) -> None:
        plugin, trainer = attachment.plugin, self._trainer
        for events, handler in [*plugin.subscriptions(trainer), *_beginnings(attachment)]:
            for event in events if isinstance(events, EventsList) else [events]:
                if event is DETACHED:
                    attachment.endings.append(handler)
                    continue
                if event is KEPT:
                    attachment.kept.append(handler)
                    continue
                if not trainer.has_registered_events(event):
                    raise ConfigurationError(f"{plugin!r} subscribes to {event!r}, which is no event of this trainer")
                name = str(getattr(event, "name", event))
                handled = PluginHandler(handler, plugin, attachment.binding, name, trainer)
                attachment.handlers.append((event, handled))

    def _begin(self, attachment: Attachment) -> None:
        if attachment.binding is not None:
            try:
                attachment.binding.layers.register()
                if self._trainer._initialized and attachment.binding.plugin.remembers_start:
                    attachment.binding.begin()
            except Exception:
                attachment.binding.layers.release()
                self._listed.remove(attachment)
                raise
        for event, handler in attachment.handlers:
            self._trainer.add_event_handler(event, handler)
            attachment.registered.append(self._trainer._event_handlers[event][-1][0])
        self._acting.append(attachment)
        self._rearrange()

    def _end(self, attachment: Attachment) -> None:
        self._acting.remove(attachment)
        for event, handler in attachment.handlers:
            self._trainer.remove_event_handler(handler, event)
        if attachment.binding is not None:
            attachment.binding.layers.release()
        self._rearrange()
        for ending in attachment.endings:
            with blaming(attachment.plugin, "when it was detached"):
                ending()

    def _rearrange(self) -> None:
        """After a change of what acts: look at the weights anew, number the plugins of a class, order the handlers."""
        weights = self._inventory()
        seen: Counter[str] = Counter()
        for attachment in self._acting:
            name = class_path(type(attachment.plugin))
            attachment.label = f"{name}#{seen[name]}" if seen[name] else name
            seen[name] += 1
            if attachment.binding is not None:
                attachment.binding.call(attachment.label)
                attachment.binding.refresh(weights, self._trainer.optimizers)
        self._name_handlers()
        self._sort()

    def _name_handlers(self) -> None:
        """A short name for each plugin: its class's, and a number where others share it."""
        seen: Counter[str] = Counter()
        for attachment in self._acting:
            name = type(attachment.plugin).__name__
            for _, handler in attachment.handlers:
                handler.name = f"{name}.{seen[name]}" if seen[name] else name
            seen[name] += 1

    def _sort(self) -> None:
        """The engine's own handlers first, then plugins by kind and in the list's order, then everybody else's."""
        places = {id(handler): (-1, 0) for handler in self._own}
        for position, attachment in enumerate(self._acting):
            places |= {id(handler): (attachment.plugin.order, position) for handler in attachment.registered}
        handlers = self._trainer._event_handlers
        for event in handlers:  # a new list: Ignite may be iterating over the old one
            handlers[event] = sorted(handlers[event], key=lambda entry: places.get(id(entry[0]), (1000, 0)))

    def follow_optimizers(self) -> None:
        """Look at the weights anew if an optimizer was given others; see that every schedule can be followed."""
        held = [list(map(id, held_by(optimizer))) for optimizer in self._trainer.optimizers.values()]
        if held != self._held:
            self._held = held
            self._rearrange()
        for binding in self.bindings(Plugin):
            with blaming(binding.plugin, "when the run starts"):
                binding.current()

    def _inventory(self) -> list[Weight]:
        return inventory(self._trainer.models, self._trainer.optimizers)

    # ---------------------------------------------------------------- refusing

    def _refuse_stepping_on_others(self, attachment: Attachment) -> None:
        """A plugin that parametrizes a weight must not take it away from a plugin that needs it plain."""
        if attachment.binding is None:
            return
        binding = attachment.binding
        taken = {id(weight.raw[0]) for weight in binding.layers.weights()}
        for other in _bindings(self._listed, Plugin):
            after = [binding.layers.foreseen(weight) for weight in other.weights if id(weight.raw[0]) in taken]
            if after and other.plugin.sees_effective_weights:
                other.plugin.refuse(after)

    def _refuse_to_strand_others(self, binding: Binding) -> None:
        """A plugin must not take parameters of its own away that are all that another selects."""
        gone = binding.layers.added()
        if not gone:
            return
        remaining = [weight for weight in raw_weights(self._inventory()) if id(weight.parameter) not in gone]
        for other in _bindings(self._listed, Plugin):
            if other is binding or other.plugin.sees_effective_weights:
                continue
            try:
                select(other.plugin.where, remaining)
            except SelectionError as error:
                raise ConfigurationError(
                    f"{binding.plugin!r} cannot be detached before {other.plugin!r}, which selects parameters that "
                    f"would go with it: {error}"
                ) from None

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
        for other in _bindings(self._listed, Constraint):
            if _get_along(other.plugin, binding.plugin):
                continue
            held = {id(parameter) for weight in other.weights for parameter in weight.raw}
            remember = any(plugin.remembers for plugin in (other.plugin, binding.plugin))
            mend = "" if remember else "write Intersection(first, second), or "
            for weight in binding.weights:
                if any(id(parameter) in held for parameter in weight.raw):
                    raise ConflictError(
                        f"two constraints claim the weight {weight.name!r}: {other.plugin!r} and {binding.plugin!r}. "
                        f"The one that acts last would break the other: {mend}give them different weights with `where`"
                    )

    # ---------------------------------------------------------------- looking and saving

    def plan(self, epochs: int | None, epoch_length: int | None) -> Plan:
        shaped = (weight for attachment in self._listed for weight in shaped_by(attachment))
        untouched = names_without(raw_weights(self._inventory()), shaped)
        return Plan(plan_rows(self._listed, epochs, epoch_length), untouched)

    @property
    def labels(self) -> dict[str, Plugin]:
        """The acting plugins, by the labels under which they are saved."""
        return {attachment.label: attachment.plugin for attachment in self._acting}

    def fitting(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Of saved states, those that there is a place for here."""
        known = {attachment.label: attachment for attachment in self._acting}
        found = {label: state for label, state in states.items() if label in known and not known[label].misfits(state)}
        for label in states.keys() - found.keys():
            logger.warning("what was remembered of %s is dropped: it does not fit any more", label)
        return found

    def without_foreign_notes(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Saved states without the notes of plugins that keep none here, as those that only the first process keeps."""
        known = {attachment.label: attachment for attachment in self._acting}
        return {
            label: {part: value for part, value in state.items() if part != "kept"}
            if label in known and known[label].lacks_place_for_notes(state)
            else state
            for label, state in states.items()
        }

    def room(self, label: str, weight: str, outline: Tensor) -> Tensor:
        """An empty tensor for what is remembered of a weight, sharded as the plugin holds it here."""
        bindings = [a.binding for a in self._acting if a.label == label and a.binding is not None]
        if bindings:
            return bindings[0].room(weight, outline)
        return torch.empty(outline.shape, dtype=outline.dtype)

    def reseed(self) -> None:
        """Follow another seed of the trainer's."""
        for attachment in self._acting:
            if attachment.binding is not None:
                attachment.binding.call(attachment.label)

    def state_dict(self) -> dict[str, Any]:
        states = {attachment.label: attachment.state_dict() for attachment in self._acting}
        return {label: state for label, state in states.items() if state}

    def refuse_misfitting_state(self, states: Mapping[str, Any]) -> None:
        """Raise where a saved state names a plugin or a weight that is not here."""
        known = {attachment.label: attachment for attachment in self._acting}
        for label, state in states.items():
            unknown = known[label].misfits(state) if label in known else [label]
            if unknown:
                raise ConfigurationError(
                    f"the saved state of {label!r} does not fit: nothing here is called "
                    f"{', '.join(map(repr, unknown))}. Attach the plugins that the saved run had, in the same order"
                )

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        self.refuse_misfitting_state(states)
        for attachment in self._acting:
            attachment.load_state_dict(states.get(attachment.label, {}), self._trainer.device)


def _get_along(first: Any, second: Any) -> bool:
    """Whether two constraints may claim one weight: one that only puts zeros, and one that allows them anywhere."""
    return bool((first.puts_zeros and second.allows_zeros) or (second.puts_zeros and first.allows_zeros))


def _bindings(attachments: list[Attachment], kind: type[Any]) -> Iterator[Binding]:
    for attachment in attachments:
        if isinstance(attachment.plugin, kind) and attachment.binding is not None:
            yield attachment.binding


def _beginnings(attachment: Attachment) -> list[tuple[Any, Callable[..., Any]]]:
    """What a plugin that remembers how the weights started listens to besides."""
    binding = attachment.binding
    return [] if binding is None or not binding.plugin.remembers_start else [(Events.STARTED, binding.begin)]


def _registered_handlers(trainer: Trainer) -> list[Any]:
    return [entry[0] for handlers in trainer._event_handlers.values() for entry in handlers]
