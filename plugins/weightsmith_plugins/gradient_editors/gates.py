"""What decides whether a gradient reaches the optimizer at all."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from ignite.engine.events import EventEnum
from torch import Tensor
from weightsmith import ConfigurationError, GradientEditor, SelectionError, Site, Trainer, WeightEvents
from weightsmith.binding import Binding
from weightsmith.joint import any_of_each
from weightsmith.kinds import WeightPlugin
from weightsmith.plugin import Subscription
from weightsmith.selection import select
from weightsmith.site import Sharding
from weightsmith.targets import Targets
from weightsmith.tensors import nonfinite_flag
from weightsmith.weights import Weight

__all__ = ["Freeze", "SkipNonFinite", "Unfreeze"]

logger = logging.getLogger(__name__)

_ROUNDING = 1e-6
"""How far a schedule may be off a whole number."""


class Freeze(GradientEditor):
    """Takes the gradient away, so that the optimizer leaves the weight alone: a zero gradient would still move it under
    momentum and weight decay. With ``before="5 epochs"`` it trains from then on.

    Penalties with another mode than ``"loss"``, weight editors and constraints that select it still act; and batch
    norm's running statistics, which are no weights, still move.
    Outside a trainer the result is zero.

    >>> Freeze()(torch.tensor([2.0]), torch.zeros(1))
    tensor([0.])
    """

    sharding: ClassVar[Sharding] = "values"
    acts_on_its_event_only: ClassVar[bool] = True  # earlier, a penalty would bring a gradient back
    acts_on_frozen: ClassVar[bool] = True  # there is nothing to do, and to look for it costs more

    def edit(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        return torch.zeros_like(gradient)

    def act(self, binding: Binding) -> None:
        binding.targets().drop_gradients()


class Unfreeze(GradientEditor):
    """Lets frozen layers join the training one after another; what no layer names trains from the start.

    Howard & Ruder (2018), "Universal language model fine-tuning for text classification", arXiv:1801.06146, 3.3.
    A layer that joins starts with clean optimizer state. The layers' ``requires_grad`` stays true throughout.

    Args:
        layers: what ``where`` takes, for each layer, in the order in which they join: ``["layer4", "layer3"]``.
        count: how many have joined, from 0 to all, rounded down. ``linear(0, 2, over="2 epochs", after="1 epochs")``:
            none in epoch 1, then one more in each epoch.

    Raises:
        SelectionError: a layer's selector matches nothing.
    """

    sharding: ClassVar[Sharding] = "values"
    acts_on_its_event_only: ClassVar[bool] = True

    layers: tuple[str, ...]
    count: float

    def validate(self) -> None:
        if not isinstance(self.layers, tuple) or not self.layers:
            raise ConfigurationError(f"{self!r}: layers takes a list of at least one selector")
        if not -_ROUNDING <= self.count <= len(self.layers) + _ROUNDING:
            raise ConfigurationError(f"{self!r}: count must be from 0 to {len(self.layers)}, the number of layers")

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {"frozen": torch.tensor(False)}

    def edit(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        """The gradient of a layer that has joined."""
        return gradient.clone()

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding = trainer.bind(self)
        binding.once(self._places)
        yield self.event, binding.run

    def act(self, binding: Binding) -> None:
        targets, joined = binding.targets(), math.floor(self.count + _ROUNDING)
        held = binding.once(_held_by_optimizer)
        optimizer = binding.trainer.state.optimizer
        known = held.get(optimizer)
        if known is None or known[0] is not targets or known[1] != joined:
            known = held[optimizer] = targets, joined, self._held(binding, targets, joined)
        known[2].drop_gradients()

    def _held(self, binding: Binding, targets: Targets, joined: int) -> Targets:
        """The weights that are held while ``joined`` layers have joined. What joins now starts clean."""
        self._prepare(targets)
        places = binding.once(self._places)
        held = []
        for target in targets:
            was_held, is_held = target.site.state["frozen"], places.get(target.weight.name, -1) >= joined
            if is_held:
                held.append(target)
            elif was_held:
                binding.forget_moments(target)
            was_held.fill_(is_held)
        return Targets(held)

    def _places(self, weights: Sequence[Weight]) -> dict[str, int]:
        """Name to the place of the first layer that it is in."""
        layers = list(enumerate(self.layers))
        try:
            return {weight.name: place for place, layer in reversed(layers) for weight in select(layer, weights)}
        except SelectionError as error:
            raise SelectionError(f"{self!r}, of its layers: {error}") from None


def _held_by_optimizer(_: Sequence[Weight]) -> dict[str | None, tuple[Targets, int, Targets]]:
    """Where :class:`Unfreeze` notes, for each optimizer, its weights, how many layers have joined, and which weights it
    holds then; begun anew whenever its weights change."""
    return {}


class SkipNonFinite(WeightPlugin):
    """Skips an update whose gradient is not finite in any of the selected weights: no step is taken, nothing fires
    after GRADIENTS_COMPUTED, and the update's number is used again. Warns with the first weight's name.

    Reads one number from the device per update. (``precision="float16"`` skips infinities by itself.)

    Args:
        patience: how many updates may be skipped one after another, at least 1. Default 100.

    Raises:
        ConfigurationError: an optimizer is LBFGS, of whose evaluations none can be left out.
        FloatingPointError: more were skipped; names the weight and the update.
    """

    sharding: ClassVar[Sharding] = "joint"
    event: ClassVar[EventEnum] = WeightEvents.GRADIENTS_COMPUTED
    order: ClassVar[int] = 35
    uses_gradients: ClassVar[bool] = True
    acts_on_its_event_only: ClassVar[bool] = True

    patience: int = 100

    def validate(self) -> None:
        if self.patience < 1:
            raise ConfigurationError(f"{self!r}: patience must be at least 1")

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {"skipped": torch.tensor(0)}

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers.values()):
            raise ConfigurationError(
                f"{self!r}: LBFGS evaluates the loss several times a step, of which none can be left"
            )
        binding = trainer.bind(self)

        def run() -> None:
            if binding.is_first_evaluation():
                binding.run()

        yield self.event, run

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        targets = binding.targets()
        self._prepare(targets)
        first = self._first_nonfinite([(target.site, target.gradient) for target in targets])
        if first is None:
            if int(targets[0].site.state["skipped"]):  # they count together
                for target in targets:
                    target.site.state["skipped"].zero_()
            return
        for target in targets:
            target.site.state["skipped"].add_(1)
        message = f"the gradient of weight {first.name!r} is not finite in update {first.update}"
        if int(first.state["skipped"]) > self.patience:
            raise FloatingPointError(f"{message}, and {self.patience} updates in a row were skipped for that")
        logger.warning("%r: %s: the update is skipped", self, message)
        binding.trainer.skip_update()

    def _first_nonfinite(self, pairs: Sequence[tuple[Site, Tensor | None]]) -> Site | None:
        """Where the first gradient is that is not finite in any of its parts."""
        given = [(site, gradient) for site, gradient in pairs if gradient is not None]
        if not given:
            return None
        sites, gradients = zip(*given, strict=True)
        if all(site.is_whole for site in sites):  # as nearly always all are finite, all are asked at once
            flag = torch.zeros((), device=gradients[0].device)
            if not nonfinite_flag(gradients, flag):
                return None
        finite = ~any_of_each([~gradient.isfinite().all() for gradient in gradients], sites)
        first: Site = sites[int(finite.to(torch.uint8).argmin())]
        return None if finite.all() else first
