"""Penalty: what a weight is charged for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from ignite.engine.events import EventEnum
from torch import Tensor

from weightsmith.binding import Binding
from weightsmith.errors import ConfigurationError, PluginContractError, UnsupportedWeightError
from weightsmith.events import WeightEvents
from weightsmith.kinds.base import WeightPlugin, add_to, copy_to, without_gradients
from weightsmith.plugin import Subscription
from weightsmith.selection import Selector, matrices
from weightsmith.site import Site
from weightsmith.targets import GradientNeed, Target, Targets
from weightsmith.tensors import unit_view
from weightsmith.weights import Weight

if TYPE_CHECKING:
    from weightsmith.trainer import Trainer

__all__ = ["Penalty"]


class Penalty(WeightPlugin, abstract=True):
    """Charges for a weight's size. Its gradient is added once per update, whatever the accumulation or precision.

    The cost itself is computed only when somebody asks: a closure, a probe, a log line.

    Args:
        mode: ``"loss"`` (default) acts as if the cost were a part of the loss. ``"decoupled"`` shrinks the weight by
            learning rate × gradient just before the step, past the optimizer's moments, as AdamW does (Loshchilov &
            Hutter, 2019, arXiv:1711.05101). ``"proximal"``, where defined, applies the proximal map of learning rate ×
            cost after the step (Parikh & Boyd, 2014).
    """

    event: ClassVar[EventEnum] = WeightEvents.GRADIENTS_COMPUTED
    derived: ClassVar[Mapping[str, Sequence[str]]] = {
        "cost": ("gradient", "gradient_all_", "proximal", "unitwise", "sharding"),
        "gradient": ("gradient_all_", "unitwise"),
    }
    order: ClassVar[int] = 30
    default_where: ClassVar[Selector] = matrices
    sees_effective_weights: ClassVar[bool] = True
    uses_gradients: ClassVar[bool] = True

    mode: Literal["loss", "decoupled", "proximal"] = field(default="loss", kw_only=True)

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({"gradient" if self.mode == "loss" else "weight"})

    @property
    def gradient_need(self) -> GradientNeed:
        return "added" if self.mode == "loss" else "none"

    @abstractmethod
    def cost(self, weight: Tensor, site: Site) -> Tensor:
        """What the weight is charged; 0-d. Of a part of a sharded one, what the part adds to the sum; with joint
        ``sharding``, what the whole is charged."""

    def charge(self, target: Target) -> Tensor:
        """The cost of a whole weight, of which a part may be in hand: then every process must ask."""
        cost: Tensor = self._ask(self.cost, target.effective, site=target.site)
        return cost if self.acts_jointly else target.site.total(cost)

    def gradient(self, weight: Tensor, site: Site) -> Tensor:
        """The gradient of the cost; by default found by autograd. Override with the closed form where there is one."""
        with torch.enable_grad():
            leaf = weight.detach().requires_grad_()
            cost = self.cost(leaf, site)
            if not (isinstance(cost, Tensor) and cost.ndim == 0 and cost.requires_grad):
                raise PluginContractError(
                    f"{type(self).__name__}.cost returned {cost!r}: return a 0-d tensor computed from the weight"
                )
            (gradient,) = torch.autograd.grad(cost, leaf)
        return gradient

    def proximal(self, weight: Tensor, step: Tensor | float, site: Site) -> Tensor:
        """argmin over v of step · cost(v) + ½ ‖v − weight‖², same shape. Override where it is known.

        Raises:
            NotImplementedError: the penalty has none; ``mode="proximal"`` is then refused when it is attached.
        """
        raise NotImplementedError(f"{type(self).__name__} has no proximal form")

    def gradient_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        """The plural form: adds the cost's gradient to ``gradients``."""
        self._unitwise(self.gradient, add_to, gradients, sites, weights)

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding = trainer.bind(self)
        yield self.at or _EVENTS[self.mode], binding.run

    def refuse(self, weights: Sequence[Weight]) -> None:
        if self.mode == "proximal" and type(self).proximal is Penalty.proximal:
            raise ConfigurationError(f"{self!r}: {type(self).__name__} has no proximal form; use mode='loss'")
        for weight in weights:
            if weight.parametrized and self.mode != "loss":
                raise UnsupportedWeightError(
                    f"{self!r}: weight {weight.name!r} is parametrized, and mode={self.mode!r} would edit its raw "
                    "parameters instead: use mode='loss'"
                )

    @without_gradients
    def act(self, binding: Binding) -> None:
        for targets in binding.rounds():
            self._prepare(targets)
            if self.mode == "loss":
                self._add_gradients(targets)
            elif self.mode == "proximal" or binding.is_first_evaluation():
                self._shrink(targets)

    def _add_gradients(self, targets: Targets) -> None:
        plain = targets.plain
        self.gradient_all_(plain.start_gradients(), plain.tensors, plain.sites)
        for target in targets.parametrized:
            self._add_through_parametrization(target)

    def _add_through_parametrization(self, target: Target) -> None:
        with torch.enable_grad():
            effective = target.weight.effective()
        outer = torch.zeros_like(effective)
        module = target.weight.module
        self.gradient_all_([unit_view(outer, module)], [unit_view(effective.detach(), module)], [target.site])
        trained = [parameter for parameter in target.weight.raw if parameter.requires_grad]
        inner = torch.autograd.grad(effective, trained, outer, allow_unused=True)
        for parameter, gradient in zip(trained, inner, strict=True):
            if gradient is not None:
                # Copied: autograd may hand the same tensor to several parameters.
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)

    def _shrink(self, targets: Targets) -> None:
        method = self._decoupled if self.mode == "decoupled" else self._proximal
        weights = targets.tensors
        self._singly(method, copy_to, weights, targets.sites, weights)

    def _decoupled(self, weight: Tensor, site: Site) -> Tensor:
        shrunk: Tensor = weight - site.learning_rate * self.gradient(weight, site)
        return shrunk

    def _proximal(self, weight: Tensor, site: Site) -> Tensor:
        return self.proximal(weight, site.learning_rate, site)

    def __call__(self, weight: Tensor, *, site: Site | None = None) -> Tensor:
        """The cost, outside a trainer; differentiable."""
        cost: Tensor = self._call("cost", [weight], site)
        return cost


_EVENTS = {
    "loss": WeightEvents.GRADIENTS_COMPUTED,
    "decoupled": WeightEvents.GRADIENTS_READY,
    "proximal": WeightEvents.STEP_COMPLETED,
}
