"""Units that no longer learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from ignite.engine import Events
from ignite.engine.events import EventEnum
from torch import Tensor
from weightsmith import ConfigurationError, Measurement, Selector, Site, WeightEvents, matrices
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

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        units = unit_norms(weight, site.unit_dims, order=1.0).abs()
        return {"activity": torch.zeros_like(units), "updates": torch.tensor(0)}

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding = trainer.bind(self)

        @torch.no_grad()
        def add() -> None:
            if not (binding.due() and binding.is_first_evaluation()):
                return
            for targets in binding.rounds():
                self._prepare(targets)
                for _, site in targets:
                    if site.gradient is not None:
                        found = unit_norms(site.gradient, site.unit_dims, order=1.0).abs().nan_to_num(0.0, 0.0, 0.0)
                        site.state["activity"].add_(found)
                        site.state["updates"].add_(1)

        def forget() -> None:
            for _, site in binding.all_targets():
                for entry in site.state.values():
                    entry.zero_()

        yield Events.EPOCH_STARTED, forget
        yield WeightEvents.GRADIENTS_COMPUTED, add
        yield self.event, binding.run

    def act(self, binding: Binding) -> None:
        shares: dict[str, Measurement] = {}
        for weight, site in binding.all_targets():
            if site.state and site.state["updates"]:
                dormant = are_dormant(site.state["activity"], self.threshold, site)
                share = mean_over_units(dormant.double(), site)
                shares[tag("dormant_units", weight.name, weight.leaf)] = share
        binding.publish(shares)
