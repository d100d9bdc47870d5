"""What each plugin does to the weights and to their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from ignite.engine import Events
from ignite.engine.events import EventEnum
from torch import Tensor
from weightsmith import Measurement, Probe, Site, WeightEvents
from weightsmith.binding import Binding
from weightsmith.handlers import PluginHandler
from weightsmith.kinds import WeightPlugin
from weightsmith.kinds.probe import tag
from weightsmith.plugin import KEPT, Subscription
from weightsmith.site import Sharding
from weightsmith.targets import Target
from weightsmith.tensors import accurate_dtype

from weightsmith_plugins.probes.updates import SampledUpdates

if TYPE_CHECKING:
    from weightsmith import Trainer

__all__ = ["GradientNorms", "PluginEffect"]

_GRADIENT_EVENTS = (WeightEvents.GRADIENTS_COMPUTED.name, WeightEvents.GRADIENTS_READY.name)


class PluginEffect(WeightPlugin):
    """Who moved this weight? The L2 norm ‖Δw‖ of what each plugin changed in every selected weight, raw, as plugins
    write it; and of the rest, the optimizer's step: ``effect/<module>/<parameter>/<plugin>`` and ``…/optimizer``.

    The rest holds what handlers of your own write, if they do. A second plugin of a class is ``<plugin>.1``; one that
    selects no weights is there where it moved some. What a plugin does to gradients shows in the optimizer's step, and
    in :class:`GradientNorms`.

    Args:
        of: ``"update"`` (default), the one in the last iteration of an epoch (of an optimizer that has none there, its
            first of the epoch), and only then are weights copied; or ``"epoch"``, as ``epoch_effect/…``, the sum of
            the norms over all its updates and what lies between them, which shows plugins that act now and then, at
            the price of several copies of the weights in each update.
    """

    sharding: ClassVar[Sharding] = "joint"
    event: ClassVar[EventEnum] = Events.EPOCH_COMPLETED
    order: ClassVar[int] = 65
    acts_on_frozen: ClassVar[bool] = True
    acts_on_its_event_only: ClassVar[bool] = True
    supports_complex: ClassVar[bool] = True

    of: Literal["update", "epoch"] = "update"

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding, sampled = trainer.bind(self), SampledUpdates(trainer)
        moves = _Moves(binding, adds=self.of == "epoch")

        def begin() -> None:
            if binding.is_first_evaluation():
                moves.end()
                if binding.due() and not trainer.is_skipping and (self.of == "epoch" or sampled.includes_this()):
                    moves.begin()

        def started() -> None:
            acting = trainer.state.acting
            if acting is None or not _writes(acting, "weight"):
                return
            outside = acting.event not in _UPDATE_EVENTS  # where a plugin acts by `at`
            if moves.watches_update() or (outside and (self.of == "epoch" or sampled.is_last_iteration())):
                moves.start(acting)

        yield KEPT, sampled
        yield Events.EPOCH_STARTED, sampled.begin_epoch
        yield WeightEvents.GRADIENTS_COMPUTED, begin
        yield WeightEvents.PLUGIN_STARTED, started
        yield WeightEvents.PLUGIN_COMPLETED, lambda: moves.complete(trainer.state.acting)
        yield WeightEvents.UPDATE_COMPLETED, moves.charge_the_rest
        yield self.event, binding.run

    def act(self, binding: Binding) -> None:
        group = "effect" if self.of == "update" else "epoch_effect"
        leaves = {target.weight.name: target.weight.leaf for target in binding.all_targets()}
        binding.publish(
            {f"{tag(group, name, leaves.get(name))}/{who}": norm for (name, who), norm in binding.notes.items()}
        )
        binding.notes.clear()


_UPDATE_EVENTS = frozenset(event.name for event in WeightEvents)


class _Moves:
    """Notes of a binding: (weight, who) to the norm by which it was moved."""

    def __init__(self, binding: Binding, *, adds: bool) -> None:
        self._binding = binding
        self._adds = adds
        self._rest: dict[str, Tensor] = {}
        """The weights of the update that is watched as they were, and with what plugins have changed since."""
        self._inside: dict[PluginHandler, dict[str, Tensor]] = {}
        """The weights as they were when each of the handlers that run started."""

    @torch.no_grad()
    def begin(self) -> None:
        """Watch the update in progress."""
        self._rest = {target.weight.name: target.tensor.clone() for target in self._binding.targets()}
        if not self._adds:
            notes = self._binding.notes
            for key in [key for key in notes if key[0] in self._rest]:
                del notes[key]

    def watches_update(self) -> bool:
        return bool(self._rest)

    @torch.no_grad()
    def start(self, acting: PluginHandler) -> None:
        written = (target for target in self._targets() if acting.may_write("weight", target.weight.name))
        self._inside[acting] = {target.weight.name: target.tensor.clone() for target in written}

    @torch.no_grad()
    def complete(self, acting: PluginHandler | None) -> None:
        before = {} if acting is None else self._inside.pop(acting, {})
        if acting is None or not before:
            return
        for target in self._targets():
            name = target.weight.name
            if name not in before:
                continue
            change = _difference(target.tensor, before[name])
            if acting.binding is None and not bool(target.site.most((change != 0).any().to(torch.uint8))):
                continue
            self._note(target, acting.name, change)
            if name in self._rest:
                self._rest[name] = _sum(self._rest[name], change)

    @torch.no_grad()
    def charge_the_rest(self) -> None:
        """Charge the optimizer with what no plugin did in the update that is watched, and watch it no longer."""
        for target in self._targets():
            if target.weight.name in self._rest:
                self._note(target, "optimizer", _difference(target.tensor, self._rest[target.weight.name]))
        self.end()

    def end(self) -> None:
        """Watch no update any more."""
        self._rest, self._inside = {}, {}

    def _targets(self) -> tuple[Target, ...]:
        return self._binding.targets()

    def _note(self, target: Target, who: str, change: Tensor) -> None:
        notes, key = self._binding.notes, (target.weight.name, who)
        norm = _norm(change, target.site)
        notes[key] = notes[key] + norm if key in notes else norm


def _difference(now: Tensor, before: Tensor) -> Tensor:
    dtype = accurate_dtype(now.dtype)
    return now.to(dtype) - before.to(dtype)


def _sum(before: Tensor, change: Tensor) -> Tensor:
    return before.to(change.dtype) + change


class GradientNorms(Probe):
    """The L2 norm of every selected parameter's last gradient, after all edits, at every epoch: ``gradient_norm/…``,
    and of all of them together, by optimizer: ``gradient_norm_total/<optimizer>``. What got no gradient has none. Of a
    weight that a parametrization computes, the raw parameters are measured.

    Args:
        by_plugin: whether to measure besides, in the update in an epoch's last iteration (of an optimizer that has none
            there, in its first of the epoch), what came out of the backward pass and what each penalty and gradient
            editor made of it: ``gradient_norm_after/<module>/<parameter>/backward`` and ``…/<plugin>``, for the
            parameters that one of them acts on. Default true.
    """

    sharding: ClassVar[Sharding] = "joint"
    sees_effective_weights: ClassVar[bool] = False

    by_plugin: bool = True

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding, sampled = trainer.bind(self), SampledUpdates(trainer)
        path = _Path(binding)

        def looks(acting: PluginHandler | None) -> bool:
            """Not inside another plugin, which evaluates the update again."""
            if acting is None or acting.outer is not None or acting.event not in _GRADIENT_EVENTS:
                return False
            return _writes(acting, "gradient") and binding.due() and (self.at is not None or sampled.includes_this())

        def started() -> None:
            if looks(trainer.state.acting):
                path.begin()

        def completed() -> None:
            acting = trainer.state.acting
            if acting is not None and looks(acting):
                path.note(acting.name, acting)

        yield self.at or self.event, binding.run
        if self.by_plugin:
            yield KEPT, sampled
            yield Events.EPOCH_STARTED, sampled.begin_epoch
            yield WeightEvents.PLUGIN_STARTED, started
            yield WeightEvents.PLUGIN_COMPLETED, completed

    def measure(self, weight: Tensor, site: Site) -> dict[str, Measurement]:
        norm = _gradient_norm(site)
        return {} if norm is None else {"gradient_norm": norm}

    @torch.no_grad()
    def measured(self, binding: Binding) -> dict[str, Measurement]:
        found, squares = super().measured(binding), dict[str, list[Tensor]]()
        for weight, site in binding.all_targets():
            norm = found.get(tag("gradient_norm", weight.name, weight.leaf))
            if isinstance(norm, Tensor) and site.optimizer is not None:
                squares.setdefault(site.optimizer, []).append(norm.square())
        for optimizer, some in squares.items():
            found[f"gradient_norm_total/{optimizer}"] = torch.stack([s.to(some[0].device) for s in some]).sum().sqrt()
        for name, norms in binding.notes.items():
            if len(norms) > 1:  # else nobody acted on what the backward pass gave
                found |= {f"gradient_norm_after/{name}/{who}": norm for who, norm in norms.items()}
        binding.notes.clear()
        return found


class _Path:
    """Notes of a binding: parameter to the norms of its gradient on the way from the backward pass to the optimizer."""

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self._evaluation: object = None

    def begin(self) -> None:
        """At the first plugin of an evaluation, note what came out of the backward pass."""
        state = self._binding.trainer.state
        evaluation = state.optimizer, state.window, state.evaluation
        if evaluation != self._evaluation:
            self._evaluation = evaluation
            for weight, _ in self._binding.targets():
                self._binding.notes.pop(tag("", weight.name, weight.leaf), None)
            self.note("backward", None)

    @torch.no_grad()
    def note(self, who: str, acting: PluginHandler | None) -> None:
        """Note the norms as somebody left them."""
        for weight, site in self._binding.targets():
            norm = _gradient_norm(site)
            if norm is not None and (acting is None or acting.may_write("gradient", weight.name)):
                self._binding.notes.setdefault(tag("", weight.name, weight.leaf), {})[who] = norm


def _writes(acting: PluginHandler, what: str) -> bool:
    """Whether a handler may write the weight or the gradient of anything."""
    if acting.binding is None:
        return True
    plugin = acting.binding.plugin
    return what in plugin.writes or (what == "gradient" and plugin.evaluates_again)


def _gradient_norm(site: Site) -> Tensor | None:
    gradient = site.gradient
    if gradient is None:
        return None
    return _norm(gradient.coalesce().values() if gradient.is_sparse else gradient, site)


def _norm(values: Tensor, site: Site) -> Tensor:
    """The L2 norm, real and in float32 or better."""
    norm: Tensor = torch.linalg.vector_norm(values, dtype=accurate_dtype(values.dtype)).abs()
    return norm if site.is_whole else site.total(norm.square()).sqrt()
