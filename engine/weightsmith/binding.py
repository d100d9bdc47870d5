"""A plugin bound to the weights of one trainer: which ones, when it is due, and what it remembers of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weightsmith.errors import PluginContractError, SelectionError, UnsupportedWeightError
from weightsmith.events import TrainingState, WeightEvents
from weightsmith.layers import ParametrizedLayers
from weightsmith.optimizers import forget, momenta
from weightsmith.schedules import Progress
from weightsmith.selection import select
from weightsmith.shards import gather, is_sharded, own_part, part_of, put_back, spread
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


class Binding:
    """What a run adds to a plugin, which itself is only configuration.

    Attributes:
        plugin: the plugin.
        trainer: the trainer.
        label: its name among the acting plugins; seeds its draws.
        weights: the weights that it selects.
        layers: those of the weights, where they compute with the plugin's function of the weight.
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
        self.layers = ParametrizedLayers(self)
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
        effective = self.plugin.sees_effective_weights and not self.plugin.masks_raw
        site = Site(weight, self._state, optimizer, self._seed(), effective=effective, sharding=self.plugin.handling)
        target = Target(weight, site)
        if weight.raw[0].numel():
            is_whole = target.part is None and not target.site._is_scattered
            seen = self.plugin._seen(target).detach() if is_whole else torch.empty(target.site.shape, device="meta")
            for plugin in [*self.plugin._extremes()] or [self.current()]:
                plugin.refuse_misfit(seen, target.site)
        return target

    def site_of(self, weight: Weight) -> Site:
        """Where the plugin stands at one of its weights."""
        return self._targets[weight.name].site

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
        elif self.plugin.acts_jointly and is_sharded(weight.raw[0]) and part_of(weight.raw[0]) is None:
            problem = (
                "is sharded along several axes, or in pieces that do not follow one another, of which this plugin can "
                "find nothing together: shard it along one axis, or leave it out with `where`"
            )
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
        acts_everywhere = self.plugin.acts_jointly or self.plugin.remembers  # else an empty part has no memory to save
        at_hand = targets.at_hand if acts_everywhere else targets.at_hand.filled
        if at_hand:
            yield at_hand
        for target in targets.scattered:
            with gathered(target, writes, self.plugin.gradient_need) as whole:
                stood_at = torch.get_rng_state()
                yield Targets([whole])
                self._refuse_own_draws(stood_at, target.weight)

    def _refuse_own_draws(self, stood_at: Tensor, weight: Weight) -> None:
        if not torch.equal(stood_at, torch.get_rng_state()):
            raise PluginContractError(
                f"{self.plugin!r} drew from torch's global generator for the sharded weight {weight.name!r}: every "
                "process would draw something else, and keep its part of it; draw from site.generator"
            )

    def each(self, targets: Targets | None = None) -> Iterator[Target]:
        """The weights one by one, to be looked at: as :meth:`rounds`, with those of which nothing is here, so that all
        processes may ask something of each other."""
        targets = self.targets() if targets is None else targets
        yield from targets.at_hand
        for target in targets.scattered:
            with gathered(target) as whole:
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

    def forget_moments(self, target: Target, where: Tensor | None = None) -> None:
        """Clean what the optimizer remembers of a weight, such as momentum: all of it, or the elements in ``where``."""
        if target.weight.optimizer is None:
            return
        shape = target.site.shape if target.part is None else target.tensor.shape
        for parameter in self.at_home(target).weight.raw:
            elements = None if where is None else where.expand(shape)
            if elements is not None and target.part is None:
                elements = own_part(spread(elements.reshape(parameter.shape), parameter))
            forget(self.trainer.optimizers[target.weight.optimizer], parameter, elements)

    def at_home(self, target: Target) -> Target:
        """The target of the same weight that is not gathered."""
        return self._targets[target.weight.name]

    def edit_momenta(self, target: Target, edit: Callable[[Tensor], Tensor]) -> None:
        """Replace the optimizer's momentum of a weight, seen as the plugin sees the weight; nothing if there is none
        (yet)."""
        if target.weight.optimizer is None:
            return
        parameter = self.at_home(target).weight.parameter
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


_START = frozenset({WeightEvents.INITIALIZING, WeightEvents.WEIGHTS_EDITED})
