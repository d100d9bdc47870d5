"""What an update changed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ignite.engine import Events
from ignite.engine.events import EventEnum
from torch import Tensor
from weightsmith import Measurement, Site, WeightEvents
from weightsmith.binding import Binding
from weightsmith.joint import joint_norm
from weightsmith.kinds import WeightPlugin
from weightsmith.kinds.probe import tag
from weightsmith.plugin import KEPT, Subscription
from weightsmith.site import Sharding
from weightsmith.tensors import accurate_dtype

from weightsmith_plugins.probes.distributions import joint_histogram

if TYPE_CHECKING:
    from weightsmith import Trainer

__all__ = ["SampledUpdates", "UpdateHistograms", "UpdateRatio"]


class SampledUpdates:
    """Chooses the update that stands for an epoch: the one in its last iteration; before it is known whether there is
    one, the optimizer's first in the epoch, in case that it is updated now and then, or the epoch is cut short."""

    def __init__(self, trainer: Trainer) -> None:
        self._state = trainer.state
        self._seen: set[str | None] = set()
        self._chosen: object = None

    def begin_epoch(self) -> None:
        self._seen.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"seen": sorted(map(str, self._seen))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._seen = set(state.get("seen", ()))

    def is_last_iteration(self) -> bool:
        """Whether this iteration is the last of its epoch, as far as is known."""
        length = self._state.epoch_length
        return length is None or self._state.iteration == self._state.epoch * length

    def includes_this(self) -> bool:
        """Whether the update in progress is one of those; asked any number of times during the update."""
        update = self._state.optimizer, self._state.window
        if update == self._chosen:
            return True
        if self.is_last_iteration() or self._state.optimizer not in self._seen:
            self._seen.add(self._state.optimizer)
            self._chosen = update
            return True
        return False


class UpdateProbe(WeightPlugin, abstract=True):
    """Compares every selected weight, as its layer computes with it, before and after the update in the last iteration
    of an epoch, edits and constraints included. Where there is none (an optimizer that is updated now and then, an
    epoch that is cut short), before and after the optimizer's first update of the epoch. The weights are copied in
    these updates only; where the epoch's length is not known, in each."""

    sharding: ClassVar[Sharding] = "joint"
    event: ClassVar[EventEnum] = Events.EPOCH_COMPLETED
    order: ClassVar[int] = 65
    acts_on_its_event_only: ClassVar[bool] = True
    sees_effective_weights: ClassVar[bool] = True
    supports_complex: ClassVar[bool] = True

    @abstractmethod
    def compare(self, before: Tensor, after: Tensor, site: Site) -> dict[str, Measurement]:
        """Group (``"updates"``) to what was measured; its tag becomes ``updates/conv1/weight``."""

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding, sampled = trainer.bind(self), SampledUpdates(trainer)
        before: dict[str, Tensor] = {}

        @torch.no_grad()
        def begin() -> None:
            if not binding.is_first_evaluation():
                return
            before.clear()
            if binding.due() and not trainer.is_skipping and sampled.includes_this():
                before.update({t.weight.name: t.effective.clone() for t in binding.targets()})

        @torch.no_grad()
        def end() -> None:
            for target in binding.targets():
                weight, site = target
                if weight.name in before:
                    found = self.compare(before[weight.name], target.effective, site)
                    measured = {tag(group, weight.name, weight.leaf): value for group, value in found.items()}
                    binding.notes[weight.name] = measured
            before.clear()

        yield KEPT, sampled
        yield Events.EPOCH_STARTED, sampled.begin_epoch
        yield WeightEvents.GRADIENTS_COMPUTED, begin
        yield WeightEvents.UPDATE_COMPLETED, end
        yield self.event, binding.run

    def act(self, binding: Binding) -> None:
        binding.publish({tag: value for measured in binding.notes.values() for tag, value in measured.items()})
        binding.notes.clear()


class UpdateHistograms(UpdateProbe):
    """The distribution of what an epoch's last update changed, Δw, in every selected weight as its layer computes with
    it: ``updates/…``. Values that are not finite are left out.
    """

    def compare(self, before: Tensor, after: Tensor, site: Site) -> dict[str, Measurement]:
        found = joint_histogram(after - before, site)
        return {"updates": found} if found.count else {}


class UpdateRatio(UpdateProbe):
    """‖Δw‖ / ‖w‖ of an epoch's last update, for every selected weight as its layer computes with it:
    ``update_ratio/…``. A rule of thumb is 1e-3 (Stanford CS231n, "Neural networks, part 3"). A weight that was zero, or
    not finite, before has none.
    """

    def compare(self, before: Tensor, after: Tensor, site: Site) -> dict[str, Measurement]:
        dtype = accurate_dtype(before.dtype)
        size = joint_norm([before.to(dtype)], [site])
        change = joint_norm([after.to(dtype) - before.to(dtype)], [site])
        return {"update_ratio": (change / size).abs()} if bool(size > 0) else {}
