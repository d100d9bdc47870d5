"""GradientEditor and WeightEditor: edits before and after the optimizer's step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from ignite.engine.events import EventEnum
from torch import Tensor

from weightsmith.binding import Binding
from weightsmith.events import WeightEvents
from weightsmith.kinds.base import WeightPlugin, copy_to, without_gradients
from weightsmith.site import Site

__all__ = ["GradientEditor", "WeightEditor"]


class GradientEditor(WeightPlugin, abstract=True):
    """Edits the gradient that the optimizer will step along. Acts on GRADIENTS_READY, on raw weights."""

    event: ClassVar[EventEnum] = WeightEvents.GRADIENTS_READY
    derived: ClassVar[Mapping[str, Sequence[str]]] = {"edit": ("edit_all_", "unitwise", "sharding")}
    order: ClassVar[int] = 20
    uses_gradients: ClassVar[bool] = True
    weight_argument: ClassVar[int] = 1

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({"gradient"})

    @abstractmethod
    def edit(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        """The gradient to use in place of ``gradient``; same shape."""

    def edit_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        """The plural form: writes to ``gradients``."""
        self._unitwise(self.edit, copy_to, gradients, sites, gradients, weights)

    @without_gradients
    def act(self, binding: Binding) -> None:
        for some in binding.rounds():
            targets, gradients = some.with_gradients()
            self._prepare(targets)
            self.edit_all_(gradients, targets.tensors, targets.sites)

    def __call__(self, gradient: Tensor, weight: Tensor, *, site: Site | None = None) -> Tensor:
        """The edited gradient, outside a trainer."""
        result: Tensor = self._call("edit", [gradient, weight], site)
        return result


class WeightEditor(WeightPlugin, abstract=True):
    """Edits the weight after the optimizer's step, with the gradient still at hand. Acts on STEP_COMPLETED."""

    event: ClassVar[EventEnum] = WeightEvents.STEP_COMPLETED
    derived: ClassVar[Mapping[str, Sequence[str]]] = {"edit": ("edit_all_", "sharding")}
    order: ClassVar[int] = 40
    uses_gradients: ClassVar[bool] = True

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({"weight"})

    @abstractmethod
    def edit(self, weight: Tensor, gradient: Tensor, site: Site) -> Tensor:
        """The weight to use in place of ``weight``; ``gradient`` is zero where the loss did not reach the weight."""

    def edit_all_(self, weights: Sequence[Tensor], gradients: Sequence[Tensor], sites: Sequence[Site]) -> None:
        """The plural form: writes to ``weights``."""
        self._singly(self.edit, copy_to, weights, sites, weights, gradients)

    @without_gradients
    def act(self, binding: Binding) -> None:
        for targets in binding.rounds():
            self._prepare(targets)
            weights, found = targets.tensors, targets.gradients
            gradients = [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]
            self.edit_all_(weights, gradients, targets.sites)

    def __call__(self, weight: Tensor, gradient: Tensor | None = None, *, site: Site | None = None) -> Tensor:
        """The edited weight, outside a trainer."""
        result: Tensor = self._call("edit", [weight, torch.zeros_like(weight) if gradient is None else gradient], site)
        return result
