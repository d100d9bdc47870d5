"""Average: a running average beside every weight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ignite.engine.events import EventEnum
from torch import Tensor

from weightsmith.binding import Binding
from weightsmith.events import WeightEvents
from weightsmith.kinds.base import WeightPlugin, copy_to, without_gradients
from weightsmith.site import Site
from weightsmith.tensors import accurate_dtype

__all__ = ["Average"]


class Average(WeightPlugin, abstract=True):
    """Keeps a running average of every weight, beside it. Acts on UPDATE_COMPLETED, on final and feasible weights.

    The mean starts as a copy of the weight at the first count that is due, in float32 at least (an average in
    bfloat16 stalls). ``trainer.averaged(plugin)`` lends the means to the model for a while.
    """

    event: ClassVar[EventEnum] = WeightEvents.UPDATE_COMPLETED
    derived: ClassVar[Mapping[str, Sequence[str]]] = {"average": ("average_all_", "sharding")}
    order: ClassVar[int] = 60
    supports_complex: ClassVar[bool] = True
    weight_argument: ClassVar[int] = 1

    @abstractmethod
    def average(self, mean: Tensor, weight: Tensor, site: Site) -> Tensor:
        """The new mean, given the one so far; shape and dtype of ``mean`` (float32 at least), ``weight`` in its own."""

    def average_all_(self, means: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        """The plural form: writes to ``means``."""
        self._singly(self.average, copy_to, means, sites, means, weights)

    def _first_entries(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {"mean": weight.to(accurate_dtype(weight.dtype)), **self.init(weight, site)}

    @without_gradients
    def act(self, binding: Binding) -> None:
        for targets in binding.rounds():
            self._prepare(targets)
            self.average_all_([site.state["mean"] for site in targets.sites], targets.tensors, targets.sites)

    def __call__(self, mean: Tensor, weight: Tensor, *, site: Site | None = None) -> Tensor:
        """The new mean, outside a trainer."""
        result: Tensor = self._call("average", [mean, weight], site)
        return result
