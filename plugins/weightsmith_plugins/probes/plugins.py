"""What each plugin does to the weights and to their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from weightsmith.plugin import Subscription
from weightsmith.tensors import accurate_dtype
from weightsmith.weights import Weight, raw_weights

from weightsmith_plugins.probes.updates import is_last_iteration

if TYPE_CHECKING:
    from weightsmith import Trainer

__all__ = ["GradientNorms", "PluginEffect"]

_GRADIENT_EVENTS = (WeightEvents.GRADIENTS_COMPUTED.name, WeightEvents.GRADIENTS_READY.name)


class PluginEffect(WeightPlugin):
    """Who moved this weight? The L2 norm ‖Δw‖ of what each plugin changed in every selected weight, raw, as plugins
    write it; and of the rest, the optimizer's step: ``effect/<module>/<parameter>/<plugin>`` and ``…/optimizer``.

    The rest holds what handlers of your own write, if they do. A second plugin of a class is ``<plugin>.1``. What a
    plugin does to gradients shows in the optimizer's step, and in :class:`GradientNorms`.

    Args:
        of: ``"update"`` (default), the last one of an epoch, in which alone the weights are copied; or ``"epoch"``, the
            sum of the norms over all its updates, which shows plugins that act now and then, at the price of several
            copies of the weights in each.
    """

    event: ClassVar[EventEnum] = Events.EPOCH_COMPLETED
    order: ClassVar[int] = 65
    acts_on_frozen: ClassVar[bool] = True
    acts_on_its_event_only: ClassVar[bool] = True
    uses_gradients: ClassVar[bool] = True
    supports_complex: ClassVar[bool] = True

    of: Literal["update", "epoch"] = "update"

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding = trainer.bind(self)

        def begin() -> None:
            if (self.of == "epoch" or is_last_iteration(trainer)) and binding.due() and binding.is_first_evaluation():
                binding.once(_Moves).begin(binding, adds=self.of == "epoch")

        def started() -> None:
            if _writes(trainer.state.acting, "weight"):
                binding.once(_Moves).charge(binding, "optimizer")

        def completed() -> None:
            acting = trainer.state.acting
            if acting is not None and _writes(acting, "weight"):
                binding.once(_Moves).charge(binding, acting.name, acting.may_write)

        def end() -> None:
            binding.once(_Moves).charge(binding, "optimizer")
            binding.once(_Moves).end()

        yield WeightEvents.GRADIENTS_COMPUTED, begin
        yield WeightEvents.PLUGIN_STARTED, started
        yield WeightEvents.PLUGIN_COMPLETED, completed
        yield WeightEvents.UPDATE_COMPLETED, end
        yield self.event, binding.run

    def act(self, binding: Binding) -> None:
        moved = binding.once(_Moves).moved
        binding.publish({f"{tag('effect', name)}/{who}": norm for (name, who), norm in moved.items()})
        moved.clear()


class _Moves:
    """How far weights have moved since they were last looked at, and because of whom; for one update after another."""

    def __init__(self, _: Sequence[Weight]) -> None:
        self.moved: dict[tuple[str, str], Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._during: object = None

    @torch.no_grad()
    def begin(self, binding: Binding, *, adds: bool) -> None:
        """Look for the first time in the update in progress; its moves are added to what there is, or replace it."""
        self._during = _update_in_progress(binding)
        self._before = {target.weight.name: target.tensor.clone() for target in binding.targets()}
        if not adds:
            self.moved = {key: norm for key, norm in self.moved.items() if key[0] not in self._before}

    @torch.no_grad()
    def charge(self, binding: Binding, who: str, may_write: Callable[[str, str], bool] | None = None) -> None:
        """Charge the moves since the last look to somebody."""
        if self._during != _update_in_progress(binding):
            return
        for target in binding.targets():
            name, now, before = target.weight.name, target.tensor, self._before.get(target.weight.name)
            if before is not None and (may_write is None or may_write("weight", name)):
                norm = _norm(now.to(accurate_dtype(now.dtype)) - before)
                self.moved[name, who] = self.moved[name, who] + norm if (name, who) in self.moved else norm
                before.copy_(now)

    def end(self) -> None:
        self._before, self._during = {}, None


class GradientNorms(Probe):
    """The L2 norm of every selected weight's last gradient, after all edits, at every epoch: ``gradient_norm/…``, and
    of all of them together, by optimizer: ``gradient_norm_total/<optimizer>``. A weight that got no gradient has none.
    Of a parametrized weight, the raw parameter's.

    Args:
        by_plugin: whether to measure besides, in the last iteration of an epoch, what came out of the backward pass and
            what each penalty and gradient editor made of it: ``gradient_norm_after/<module>/<parameter>/backward`` and
            ``…/<plugin>``, for the weights that one of them acts on. Default true.
    """

    by_plugin: bool = True

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding = trainer.bind(self)

        def looks(acting: PluginHandler | None) -> bool:
            on_gradients = acting is not None and acting.event in _GRADIENT_EVENTS and _writes(acting, "gradient")
            return on_gradients and (self.at is not None or is_last_iteration(trainer)) and binding.due()

        def started() -> None:
            if looks(trainer.state.acting):
                binding.once(_Path).begin(binding)

        def completed() -> None:
            acting = trainer.state.acting
            if acting is not None and looks(acting):
                binding.once(_Path).note(binding, acting.name, acting.may_write)

        yield self.at or self.event, binding.run
        if self.by_plugin:
            yield WeightEvents.PLUGIN_STARTED, started
            yield WeightEvents.PLUGIN_COMPLETED, completed

    def measure(self, weight: Tensor, site: Site) -> dict[str, Measurement]:
        norm = _gradient_norm(site)
        return {} if norm is None else {"gradient_norm": norm}

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        super().act(binding)
        norms: dict[str, list[Tensor]] = {}
        for _, site in binding.all_targets():
            norm = _gradient_norm(site)
            if norm is not None and site.optimizer is not None:
                norms.setdefault(site.optimizer, []).append(norm)
        totals = {name: torch.stack([n.to(some[0].device) for n in some]).norm() for name, some in norms.items()}
        binding.publish({f"gradient_norm_total/{name}": total for name, total in totals.items()})
        binding.publish(binding.once(_Path).taken())


class _Path:
    """The norms of gradients on their way from the backward pass to the optimizer."""

    def __init__(self, _: Sequence[Weight]) -> None:
        self._norms: dict[tuple[str, str], Tensor] = {}
        self._evaluation: object = None

    def begin(self, binding: Binding) -> None:
        """At the first plugin of an evaluation, note what came out of the backward pass."""
        state = binding.trainer.state
        evaluation = (*_update_in_progress(binding), state.evaluation)
        if evaluation != self._evaluation:
            self._evaluation = evaluation
            self.note(binding, "backward")

    @torch.no_grad()
    def note(
        self,
        binding: Binding,
        who: str,
        may_write: Callable[[str, str], bool] | None = None,
    ) -> None:
        """Note the norms as somebody left them."""
        for weight, site in binding.targets():
            norm = _gradient_norm(site)
            if norm is not None and (may_write is None or may_write("gradient", raw_weights([weight])[0].name)):
                self._norms[weight.name, who] = norm

    def taken(self) -> dict[str, Measurement]:
        """What was noted of weights on whose gradients a plugin acted; nothing is left."""
        edited = {name for name, who in self._norms if who != "backward"}
        found: dict[str, Measurement] = {
            f"{tag('gradient_norm_after', name)}/{who}": norm
            for (name, who), norm in self._norms.items()
            if name in edited
        }
        self._norms, self._evaluation = {}, None
        return found


def _update_in_progress(binding: Binding) -> tuple[str | None, int]:
    state = binding.trainer.state
    return state.optimizer, state.window


def _writes(acting: PluginHandler | None, what: str) -> bool:
    """Whether a handler may write the weight or the gradient of anything."""
    return acting is not None and (acting.binding is None or what in acting.binding.plugin.writes)


def _gradient_norm(site: Site) -> Tensor | None:
    gradient = site.gradient
    if gradient is None:
        return None
    return _norm(gradient.coalesce().values() if gradient.is_sparse else gradient)


def _norm(values: Tensor) -> Tensor:
    """The L2 norm, real and in float32 or better."""
    norm: Tensor = torch.linalg.vector_norm(values, dtype=accurate_dtype(values.dtype))
    return norm.abs()
