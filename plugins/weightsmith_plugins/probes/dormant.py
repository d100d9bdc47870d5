"""Units that no longer learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from ignite.engine import Events
from ignite.engine.events import EventEnum
from weightsmith import ConfigurationError, Measurement, Selector, WeightEvents, matrices
from weightsmith.binding import Binding
from weightsmith.kinds import WeightPlugin
from weightsmith.kinds.probe import tag
from weightsmith.plugin import Subscription
from weightsmith.site import Sharding
from weightsmith.tensors import unit_norms

from weightsmith_plugins.dormancy import are_dormant, mean_over_units

if TYPE_CHECKING:
    from weightsmith import Trainer

__all__ = ["DormantUnits"]


class DormantUnits(WeightPlugin):
    """The share of dormant units in every selected weight at every epoch, ``dormant_units/…``: of those whose mean
    |∂loss/∂w| over the epoch's updates is at most ``threshold`` times their layer's mean.

    Sokar et al. (2023), "The dormant neuron phenomenon in deep reinforcement learning", arXiv:2302.12902, with
    gradients in place of activations, as :class:`ResetDormant`, which draws such units anew: a unit that is silent for
    every input gets none. All units of a layer that gets no gradient at all are. The gradients are the loss's, before
    penalties and edits; in an update in which a unit's is not finite, it counts as zero. Reads all gradients of the
    selected weights, by default ``matrices``, once an update.

    Args:
        threshold: the share of the layer's mean at or below which a unit is dormant, at least 0. Default 0.025.
    """

    sharding: ClassVar[Sharding] = "joint units"
    event: ClassVar[EventEnum] = Events.EPOCH_COMPLETED
    order: ClassVar[int] = 5  # on GRADIENTS_COMPUTED before the penalties
    acts_on_its_event_only: ClassVar[bool] = True
    uses_gradients: ClassVar[bool] = True
    supports_complex: ClassVar[bool] = True
    default_where: ClassVar[Selector] = matrices

    threshold: float = 0.025

    def validate(self) -> None:
        if not self.threshold >= 0:
            raise ConfigurationError(f"{self!r}: threshold must be at least 0")

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding = trainer.bind(self)

        @torch.no_grad()
        def add() -> None:
            if not (binding.due() and binding.is_first_evaluation()):
                return
            for weight, site in (target for targets in binding.rounds() for target in targets):
                if site.gradient is not None:
                    found = unit_norms(site.gradient, site.unit_dims, order=1.0).abs().nan_to_num(0.0, 0.0, 0.0)
                    binding.notes[weight.name] = binding.notes.get(weight.name, 0.0) + found

        yield Events.EPOCH_STARTED, lambda: binding.notes.clear()
        yield WeightEvents.GRADIENTS_COMPUTED, add
        yield self.event, binding.run

    def act(self, binding: Binding) -> None:
        shares: dict[str, Measurement] = {}
        for weight, site in binding.all_targets():
            activity = binding.notes.get(weight.name)
            if activity is not None:
                share = mean_over_units(are_dormant(activity, self.threshold, site).double(), site)
                shares[tag("dormant_units", weight.name, weight.leaf)] = share
        binding.publish(shares)
