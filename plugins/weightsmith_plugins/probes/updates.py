"""What an update changed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from ignite.engine import Events
from ignite.engine.events import EventEnum
from torch import Tensor
from weightsmith import Measurement, Site, WeightEvents
from weightsmith.binding import Binding
from weightsmith.kinds import WeightPlugin
from weightsmith.kinds.probe import tag
from weightsmith.plugin import Subscription
from weightsmith.tensors import accurate_dtype
from weightsmith.weights import Weight

from weightsmith_plugins.probes.distributions import histogram

if TYPE_CHECKING:
    from weightsmith import Trainer

__all__ = ["UpdateHistograms", "UpdateRatio", "is_last_iteration"]


class UpdateProbe(WeightPlugin, abstract=True):
    """Compares every selected weight, as its layer computes with it, before and after the update in the last iteration
    of an epoch, edits and constraints included. Copies the weights in that iteration only, where the epoch's length is
    known, else in each."""

    event: ClassVar[EventEnum] = Events.EPOCH_COMPLETED
    order: ClassVar[int] = 65
    acts_on_its_event_only: ClassVar[bool] = True
    sees_effective_weights: ClassVar[bool] = True
    uses_gradients: ClassVar[bool] = True
    supports_complex: ClassVar[bool] = True

    @abstractmethod
    def compare(self, before: Tensor, after: Tensor, site: Site) -> dict[str, Measurement]:
        """Group (``"updates"``) to what was measured; its tag becomes ``updates/conv1/weight``."""

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding = trainer.bind(self)

        @torch.no_grad()
        def remember() -> None:
            if is_last_iteration(trainer) and binding.due() and binding.is_first_evaluation():
                weights = {weight.name: weight.effective_units().clone() for weight, _ in binding.targets()}
                binding.once(_before).update(weights)

        yield WeightEvents.GRADIENTS_COMPUTED, remember
        yield self.event, binding.run

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        before = binding.once(_before)
        values: dict[str, Measurement] = {}
        for weight, site in binding.all_targets():
            if weight.name in before:
                found = self.compare(before[weight.name], weight.effective_units(), site)
                values |= {tag(group, weight.name): value for group, value in found.items()}
        before.clear()
        binding.publish(values)


def is_last_iteration(trainer: Trainer) -> bool:
    """Whether this iteration is the last of its epoch, as far as is known."""
    length = trainer.state.epoch_length
    return length is None or trainer.state.iteration == trainer.state.epoch * length


def _before(_: Sequence[Weight]) -> dict[str, Tensor]:
    """Where an :class:`UpdateProbe` keeps the weights of the update in progress, by name."""
    return {}


class UpdateHistograms(UpdateProbe):
    """The distribution of what an epoch's last update changed, Δw, in every selected weight: ``updates/…``."""

    def compare(self, before: Tensor, after: Tensor, site: Site) -> dict[str, Measurement]:
        found = histogram(after - before)
        return {"updates": found} if found.count else {}


class UpdateRatio(UpdateProbe):
    """‖Δw‖ / ‖w‖ of an epoch's last update, for every selected weight: ``update_ratio/…``. A rule of
    thumb is 1e-3 (Stanford CS231n, "Neural networks, part 3"). A weight that was zero before has none.
    """

    def compare(self, before: Tensor, after: Tensor, site: Site) -> dict[str, Measurement]:
        dtype = accurate_dtype(before.dtype)
        size = torch.linalg.vector_norm(before.to(dtype))
        change = torch.linalg.vector_norm(after.to(dtype) - before.to(dtype))
        return {"update_ratio": (change / size).abs()} if bool(size > 0) else {}
