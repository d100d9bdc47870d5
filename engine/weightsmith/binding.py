"""A plugin bound to the weights of one trainer: which ones, when it is due, and what it remembers of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weightsmith.errors import ConfigurationError, PluginContractError, SelectionError, UnsupportedWeightError
from weightsmith.events import TrainingState, WeightEvents
from weightsmith.optimizers import forget, join, leave, momenta
from weightsmith.parametrization import Map, Parametrized, refuse_remove, register, remembering, remove
from weightsmith.schedules import Progress
from weightsmith.selection import select
from weightsmith.shards import follow, gather, own_part, put_back, spread
from weightsmith.site import Site
from weightsmith.targets import Target, Targets, gathered
from weightsmith.tensors import unit_view
from weightsmith.weights import Weight, is_lazy, raw_weights

if TYPE_CHECKING:
    from weightsmith.kinds import WeightPlugin
    from weightsmith.measurements import Measurement
    from weightsmith.trainer import Trainer

__all__ = ["Binding"]

T = TypeVar("T")


class Registration(NamedTuple):
    """One weight whose layer computes with a plugin's function of it.

    Attributes:
        weight: the weight, as it was before.
        parametrized: the function.
        was_trained: whether the raw parameter was trained before.
        order: the names of the layer's parameters before, in their order.
    """

    weight: Weight
    parametrized: Parametrized
    was_trained: bool
    order: tuple[str, ...]


class Binding:
    """What a run adds to a plugin, which itself is only configuration.

    Attributes:
        plugin: the plugin.
        trainer: the trainer.
        label: its name among the acting plugins; seeds its draws.
        weights: the weights that it selects.
        notes: what the plugin notes of the run in progress, saved with it; unlike what :meth:`once` derives, it
            outlasts a change of the selected weights.
    """

    def __init__(self, plugin: WeightPlugin, trainer: Trainer) -> None:
        self.plugin = plugin
        self.label = ""
        self.weights: list[Weight] = []
        self.trainer = trainer
        self.notes: dict[Any, Any] = {}
        self._state: TrainingState = trainer.state
        self._targets: dict[str, Target] = {}
        self._every = Targets()
        self._by_optimizer: dict[str | None, Targets] = {}
        self._derived: dict[str, Any] = {}
        self._maps: tuple[Map, Map] | None = None
        self._adds = False
        self._parametrized: dict[str, Registration] = {}
        self._always = not plugin.limits()

    def __repr__(self) -> str:
        return f"{self.plugin!r} on {len(self.weights)} weight(s)"

    def refresh(self, inventory: list[Weight], optimizers: dict[str, Optimizer]) -> None:
        """Select anew among the weights as they are now; what is remembered of a weight stays with its name.

        Raises:
            SelectionError: nothing is selected.
            UnsupportedWeightError: the plugin cannot act correctly on a weight that it selects.
        """
        candidates = inventory if self.plugin.sees_effective_weights else raw_weights(inventory)
        try:
            self.weights = select(self.plugin.where, candidates)
        except SelectionError as error:
            raise SelectionError(f"{self.plugin!r}: {error}") from None
        for weight in self.weights:
            self._refuse_unsupported(weight)
        self.plugin.refuse(self.weights)
        self.plugin.refuse_event()
        self._derived.clear()
        self._targets = {weight.name: self._target(weight, optimizers) for weight in self.weights}
        self._every = Targets(self._targets.values())
        full = [target for target in self._every if target.weight.raw[0].numel()]
        self._by_optimizer = {None: Targets(full)}
        for optimizer in optimizers:
            self._by_optimizer[optimizer] = Targets(t for t in full if t.weight.optimizer == optimizer)

    def _target(self, weight: Weight, optimizers: dict[str, Optimizer]) -> Target:
        optimizer = None if weight.optimizer is None else optimizers[weight.optimizer]
        known = self._targets.get(weight.name)
        if known is not None:
            known.site._follow(weight, optimizer)
            return Target(weight, known.site)
        effective, handling = self.plugin.sees_effective_weights, self.plugin.handling
        site = Site(weight, self._state, optimizer, self._seed(), effective=effective, sharding=handling)
        target = Target(weight, site)
        if weight.raw[0].numel():
            is_whole = target.part is None and not target.site._is_scattered
            seen = self.plugin._seen(target).detach() if is_whole else torch.empty(target.site.shape, device="meta")
            for plugin in [*self.plugin._extremes()] or [self.current()]:
                plugin.refuse_misfit(seen, target.site)
        return target

    def call(self, label: str) -> None:
        """Give it its label."""
        self.label = label
        for target in self._targets.values():
            target.site._reseed(self._seed())

    def _seed(self) -> str:
        return f"{self.trainer.seed}|{self.label}"

    def _refuse_unsupported(self, weight: Weight) -> None:
        problem = None
        if any(is_lazy(parameter) for parameter in weight.raw):
            problem = "has no shape yet: run one batch through the model before making the Trainer"
        elif any(parameter.is_complex() for parameter in weight.raw) and not self.plugin.supports_complex:
            problem = "is complex, which this plugin is not defined for: leave it out with `where`"
        elif (
            self.plugin.uses_gradients
            and getattr(weight.module, "sparse", False)
            and isinstance(weight.module, (nn.Embedding, nn.EmbeddingBag))
        ):
            problem = "gets sparse gradients: make the embedding with sparse=False, or leave it out with `where`"
        if problem:
            raise UnsupportedWeightError(f"{self.plugin!r}: weight {weight.name!r} {problem}")

    def once(self, derive: Callable[[Sequence[Weight]], T]) -> T:
        """What ``derive`` makes of the selected weights, asked once until these change."""
        name = derive.__qualname__
        if name not in self._derived:
            self._derived[name] = derive(self.weights)
        found: T = self._derived[name]
        return found

    def targets(self) -> Targets:
        """The weights to act on now: those of the optimizer in progress, else all; none that is frozen or empty."""
        found = self._by_optimizer[self._state.optimizer]
        return found if self.plugin.acts_on_frozen else found.trained

    def rounds(self, targets: Targets | None = None, *, writes: Iterable[str] | None = None) -> Iterable[Targets]:
        """The weights to act on, in turns: those at hand together; then those sharded ones that the plugin needs whole,
        one after another, each gathered on every process. What is written to one is written back before the next.

        Args:
            targets: default :meth:`targets`.
            writes: what is written back, ``"weight"`` or ``"gradient"``. Default what the plugin says that it writes.
        """
        targets = self.targets() if targets is None else targets
        return (
            (targets,) if targets.are_whole else self._rounds(targets, self.plugin.writes if writes is None else writes)
        )

    def _rounds(self, targets: Targets, writes: Iterable[str]) -> Iterator[Targets]:
        at_hand = targets.at_hand if self.plugin.handling == "joint" else targets.at_hand.filled
        if at_hand:
            yield at_hand
        for target in targets.scattered:
            with gathered(target, writes) as whole:
                yield Targets([whole])

    def each(self, targets: Targets | None = None) -> Iterator[Target]:
        """The weights one by one, to be looked at: as :meth:`rounds`, with those of which nothing is here, so that all
        processes may ask something of each other."""
        targets = self.targets() if targets is None else targets
        yield from targets.at_hand
        for target in targets.scattered:
            with gathered(target, ()) as whole:
                yield whole

    def all_targets(self) -> Targets:
        """All its weights, those of other optimizers, frozen and empty ones included."""
        return self._every

    def due(self) -> bool:
        """Whether the plugin's ``every``, ``after`` and ``before`` say that it runs at this count."""
        return self.plugin.due(self.count(), self._state.update, self._state.epoch)

    def count(self) -> int:
        """The count that the plugin's own event is at: updates, or epochs, or iterations."""
        return self._state.get_event_attrib_value(self.plugin.at or self.plugin.event)

    def progress(self) -> Progress:
        return Progress(self._state.update, self._state.epoch, self._state.share)

    def current(self) -> Any:
        """The plugin with its schedules resolved."""
        return self.plugin.resolved(self.progress()) if self.plugin.scheduled else self.plugin

    def at_start(self) -> bool:
        return self._state.optimizer is None and self.plugin.at is None and self.plugin.event in _START

    def is_first_evaluation(self) -> bool:
        """Whether the update in progress evaluates its closure for the first time, or has none."""
        return self._state.evaluation <= 1

    def parametrize(self, forward: Map, right_inverse: Map, *, adds: bool = False) -> None:
        """Let the layers compute with ``forward(plugin, raw, site)`` in place of the raw parameter, once it acts.

        Args:
            forward: the function.
            right_inverse: its right inverse.
            adds: whether the plugin's ``parameters`` are to be trained besides.

        Raises:
            UnsupportedWeightError: the weight is tied: other layers would go on with the raw parameter.
            ConfigurationError: no optimizer's group is there for what is trained besides.
        """
        for weight in self.weights:
            if weight.aliases:
                raise UnsupportedWeightError(
                    f"{self.plugin!r}: weight {weight.name!r} is tied to {weight.aliases[0]!r}, whose layer would "
                    "go on with the raw parameter: use mode='project', or leave it out with `where`"
                )
            if adds:
                self._home(weight)
        self._maps, self._adds = (forward, right_inverse), adds

    def to_parametrize(self) -> list[Weight]:
        """The weights whose layers will compute, or do compute, with something else."""
        return self.weights if self._maps is not None else []

    def as_parametrized(self, weight: Weight) -> Weight:
        """One of these weights as it will be."""
        assert self._maps is not None
        coming = Parametrized(self, self._targets[weight.name].site, *self._maps, {})
        return replace(weight, parametrizations=(*weight.parametrizations, coming))

    def added(self) -> set[int]:
        """The ids of the parameters that are trained besides, and go with it."""
        return {id(p) for registration in self._parametrized.values() for p in registration.parametrized.parameters()}

    def register(self) -> None:
        """Carry out :meth:`parametrize`."""
        if self._maps is None:
            return
        added = [
            self._added(target) for target in self.all_targets()
        ]  # whatever fails, fails before anything is changed
        for target, parameters in zip(self.all_targets(), added, strict=True):
            weight, site = target.weight, target.site
            if not weight.raw[0].numel():
                continue
            parametrized = Parametrized(self, site, *self._maps, parameters)
            registration = Registration(weight, parametrized, weight.trainable, tuple(weight.module._parameters))
            register(weight, parametrized)
            self.trainer._replicas.mistrust_wrappers()
            follow(self.trainer.models.values(), weight.raw[0], *_home_of_raw(weight))
            self._parametrized[weight.name] = registration
            if parameters:
                optimizer, group = self._home(weight)
                join(optimizer, group, parametrized.parameters())
            if not getattr(self.plugin, "trains_raw", True):
                for parameter in weight.raw:
                    parameter.requires_grad_(False)
                    parameter.grad = None

    def _added(self, target: Target) -> dict[str, Tensor]:
        """What the plugin trains besides this weight."""
        if not self._adds:
            return {}
        plugin: Any = self.current()
        with torch.no_grad():
            added = plugin.parameters(self._whole(target.weight), target.site)
        if not (isinstance(added, dict) and all(isinstance(value, Tensor) for value in added.values())):
            raise PluginContractError(
                f"{type(plugin).__name__}.parameters returned {added!r}: return a dict of name to tensor"
            )
        return added

    @staticmethod
    def _whole(weight: Weight) -> Tensor:
        return unit_view(gather(weight.effective().detach()), weight.layout)

    def _home(self, weight: Weight) -> tuple[Optimizer, int]:
        """The optimizer, and its group, for what is trained besides a weight."""
        optimizers = self.trainer.optimizers
        if weight.optimizer is not None:
            optimizer = optimizers[weight.optimizer]
            raw = set(map(id, weight.raw))
            held = [any(id(p) in raw for p in group["params"]) for group in optimizer.param_groups]
            return optimizer, held.index(True)
        groups = [(optimizer, i) for optimizer in optimizers.values() for i in range(len(optimizer.param_groups))]
        if len(groups) > 1:
            raise ConfigurationError(
                f"{self.plugin!r}: no optimizer holds weight {weight.name!r}, so which of the {len(groups)} groups of "
                "parameters is to train what the plugin adds? Give the weight to one; frozen weights may be in it too"
            )
        return groups[0]

    def remember_forward(self, target: Target) -> None:
        """Let the plugin renew its memory by a forward pass of the weight as it is now."""
        registration = self._parametrized.get(target.weight.name)
        if registration is not None:
            with remembering(registration.parametrized):
                target.weight.effective()

    def refuse_release(self) -> None:
        """Raise where :meth:`release` would have to take something else away."""
        for registration in self._parametrized.values():
            refuse_remove(registration.weight, self)

    def release(self) -> None:
        """Undo :meth:`register`: the layers keep the values that they computed with."""
        for weight, parametrized, was_trained, order in reversed(self._parametrized.values()):
            for optimizer in self.trainer.optimizers.values():
                leave(optimizer, parametrized.parameters())
            remove(weight, order)
            self.trainer._replicas.mistrust_wrappers()
            weight.raw[0].requires_grad_(was_trained)
            follow(self.trainer.models.values(), weight.raw[0], weight.module, weight.leaf)
        self._parametrized.clear()

    def forget_moments(self, target: Target, where: Tensor | None = None) -> None:
        """Clean what the optimizer remembers of a weight, such as momentum: all of it, or the elements in ``where``."""
        if target.weight.optimizer is None:
            return
        elements = None if where is None else where.expand(target.tensor.shape)
        for parameter in self._targets[target.weight.name].weight.raw:
            if elements is not None and target.part is None:
                elements = own_part(spread(elements.reshape(parameter.shape), parameter))
            forget(self.trainer.optimizers[target.weight.optimizer], parameter, elements)

    def edit_momenta(self, target: Target, edit: Callable[[Tensor], Tensor]) -> None:
        """Replace the optimizer's momentum of a weight, seen as the plugin sees the weight; nothing if there is none
        (yet)."""
        if target.weight.optimizer is None:
            return
        parameter = self._targets[target.weight.name].weight.parameter
        for momentum in momenta(self.trainer.optimizers[target.weight.optimizer], parameter):
            if target.part is not None:
                own_part(momentum).copy_(edit(own_part(momentum)))
            else:
                edited = edit(unit_view(gather(momentum), target.weight.layout))
                put_back(momentum, edited.reshape(momentum.shape))

    def begin(self) -> None:
        """Let the plugin begin to remember the weights as they are now."""
        plugin = self.current()
        for targets in self.rounds(writes=()):
            plugin._prepare(targets)

    def publish(self, values: dict[str, Measurement]) -> None:
        """Hand measurements to the sinks, at the count of the plugin's event."""
        if values:
            self.trainer.publish(values, step=self.count())

    def names(self) -> set[str]:
        return set(self._targets)

    def may_write(self, what: str, name: str) -> bool:
        """Whether the plugin may write the ``"weight"`` or the ``"gradient"`` of this raw parameter."""
        if what not in self.plugin.writes:
            return False
        everywhere = what == "gradient" and self.plugin.evaluates_again
        return everywhere or name in self.once(_raw_names)

    def run(self) -> None:
        """Act, if it is time. The handler that the kinds subscribe."""
        if self.acts_now():
            self.current().act(self)

    def acts_now(self) -> bool:
        """Whether it is time to act."""
        return self._always or self.at_start() or self.due()

    def is_in_force(self) -> bool:
        """Whether ``after`` and ``before`` let the plugin act now, whatever its ``every``."""
        return replace(self.plugin, every=1).due(self.count(), self._state.update, self._state.epoch)

    def state_dict(self) -> dict[str, Any]:
        """What is remembered and where generators stand, by weight name, and what is noted."""
        sites = {name: target.site for name, target in self._targets.items()}
        generators = {name: site._generator_state() for name, site in sites.items()}
        return {
            "memory": {name: site._entries() for name, site in sites.items() if site._memory},
            "generators": {name: state for name, state in generators.items() if state is not None},
            "notes": self.notes,
        }

    def room(self, weight: str, outline: Tensor) -> Tensor:
        """An empty tensor for a saved entry of what is remembered of a weight: as :meth:`state_dict` gives it here."""
        target = self._targets.get(weight)
        return torch.empty(outline.shape, dtype=outline.dtype) if target is None else target.site._room(outline)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._derived.clear()
        self.notes.clear()
        self.notes.update(state.get("notes", {}))
        memories, generators = state.get("memory", {}), state.get("generators", {})
        for name, target in self._targets.items():
            device, site = target.weight.raw[0].device, target.site
            site._forget()
            site._begin({key: site._here(value).to(device) for key, value in memories.get(name, {}).items()})
            site._restore_generator(generators.get(name))


def _raw_names(weights: Sequence[Weight]) -> frozenset[str]:
    return frozenset(weight.name for weight in raw_weights(weights))


def _home_of_raw(weight: Weight) -> tuple[nn.Module, str]:
    """Where a parametrized weight's raw parameter stands."""
    return weight.module.parametrizations[weight.leaf], "original"  # type: ignore[index, return-value]


_START = frozenset({WeightEvents.INITIALIZING, WeightEvents.WEIGHTS_EDITED})
