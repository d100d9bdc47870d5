"""Initializer: how a weight starts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from ignite.engine.events import EventEnum
from torch import Tensor

from weightsmith.binding import Binding
from weightsmith.errors import UnsupportedWeightError
from weightsmith.events import WeightEvents
from weightsmith.kinds.base import WeightPlugin, copy_to
from weightsmith.selection import Selector, matrices
from weightsmith.site import Site
from weightsmith.weights import Weight

__all__ = ["Initializer"]


class Initializer(WeightPlugin, abstract=True):
    """Says how a weight starts. Acts once, on INITIALIZING, on the effective weight of a parametrized layer."""

    event: ClassVar[EventEnum] = WeightEvents.INITIALIZING
    derived: ClassVar[Mapping[str, Sequence[str]]] = {"draw": ("draw_all_", "sharding")}
    order: ClassVar[int] = 10
    default_where: ClassVar[Selector] = matrices
    acts_on_frozen: ClassVar[bool] = True
    sees_effective_weights: ClassVar[bool] = True

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({"weight"})

    @abstractmethod
    def draw(self, weight: Tensor, site: Site) -> Tensor:
        """The weight to start from, given the one that is there; same shape.

        Random numbers come from ``site.generator`` into a new tensor, such as ``torch.rand(weight.shape, …)``:
        filled into ``torch.empty_like(weight)`` they would depend on the weight's memory layout.
        """

    def draw_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        """The plural form, in place."""
        self._singly(self.draw, copy_to, weights, sites, weights)

    def refuse(self, weights: Sequence[Weight]) -> None:
        for weight in weights:
            if weight.parametrized and not all(hasattr(part, "right_inverse") for part in weight.parametrizations):
                raise UnsupportedWeightError(
                    f"{self!r}: weight {weight.name!r} is parametrized by something without a right_inverse, so no "
                    "value can be given to it: initialise before parametrizing, or leave it out with `where`"
                )

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        for targets in binding.rounds():
            self._prepare(targets)
            drawn = [t.effective.clone() if t.weight.parametrized else t.tensor for t in targets]
            self.draw_all_(drawn, [t.site for t in targets])
            for (weight, _), value in zip(targets, drawn, strict=True):
                if weight.parametrized:
                    weight.assign(value)

    def __call__(self, weight: Tensor, *, site: Site | None = None) -> Tensor:
        """The drawn weight, outside a trainer."""
        result: Tensor = self._call("draw", [weight], site)
        return result
