"""Parametrization: a layer that computes with a function of its raw parameter."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ignite.engine.events import EventEnum
from torch import Tensor

from weightsmith.binding import Binding
from weightsmith.errors import ConfigurationError
from weightsmith.events import WeightEvents
from weightsmith.kinds.base import WeightPlugin
from weightsmith.plugin import Subscription
from weightsmith.selection import Selector, matrices
from weightsmith.site import Site
from weightsmith.targets import Target
from weightsmith.weights import Weight

if TYPE_CHECKING:
    from weightsmith.trainer import Trainer

__all__ = ["Parametrization"]


class Parametrization(WeightPlugin, abstract=True):
    """Lets a layer compute with a function of its raw parameter, by torch's parametrizations, once it is attached;
    until it is detached, when the layer keeps what it computed with.

    The raw parameter stays the same object, so an optimizer that holds it goes on with all that it remembers. What
    :meth:`parameters` adds joins the optimizer's group of the raw parameter.

    One that remembers (``init``) renews its memory after every update, from what :meth:`forward` returns beside its
    result; other forward passes change nothing.
    """

    event: ClassVar[EventEnum] = WeightEvents.WEIGHTS_EDITED
    order: ClassVar[int] = 0
    default_where: ClassVar[Selector] = matrices
    acts_on_frozen: ClassVar[bool] = True
    sees_effective_weights: ClassVar[bool] = True
    acts_on_its_event_only: ClassVar[bool] = True
    trains_raw: ClassVar[bool] = True
    """Whether the raw parameter is trained. If not, it is frozen until the plugin is detached."""

    keeps_zeros: ClassVar[bool] = False
    """Whether it computes with 0 wherever the raw parameter is 0, and with the largest magnitudes where that has them:
    then a pruning may act on the raw parameter."""

    @abstractmethod
    def forward(self, weight: Tensor, site: Site) -> Tensor:
        """What the layer computes with, given the raw parameter; same shape, differentiable."""

    @abstractmethod
    def right_inverse(self, weight: Tensor, site: Site) -> Tensor:
        """A raw parameter from which :meth:`forward` gives ``weight``; or ``(raw, entries)`` to give the plugin's
        :meth:`parameters` new values as well."""

    def parameters(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        """What is trained besides the raw parameter, given the weight as it was before: name to its first value.

        :meth:`forward` finds them as ``site.parameters``. Their names follow the weight's: ``"fc.weight.up"``.
        """
        return {}

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding = trainer.bind(self)
        binding.layers.compute_with(
            _forward, _right_inverse, adds=type(self).parameters is not Parametrization.parameters
        )
        if type(self).init is not WeightPlugin.init:
            yield self.event, binding.run

    def refuse(self, weights: Sequence[Weight]) -> None:
        if self.limits():
            raise ConfigurationError(
                f"{self!r}: a layer computes with it in every forward pass: leave out every, after and before, and "
                "attach and detach it when it is to begin and end"
            )

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        """Remember anew: what the forward pass of the weights as they are now returns."""
        for target in binding.targets():
            if not (binding.at_start() and target.site.state):  # a run that goes on, goes on with what it remembers
                binding.layers.remember_forward(target)

    def _prepare(self, targets: Sequence[Target]) -> None:
        """Its memory begins with its first forward pass, which alone sees what stands before it in a stack."""

    def _call(self, method: str, tensors: Sequence[Tensor], site: Site | None) -> Any:
        site = Site.alone(tensors[0]) if site is None else site
        return super()._call(method, tensors, site._having(self.parameters(tensors[0], site)))

    def __call__(self, weight: Tensor, *, site: Site | None = None) -> Tensor:
        """What the layer would compute with, outside a trainer."""
        result: Tensor = self._call("forward", [weight], site)
        return result


def _forward(plugin: Any, raw: Tensor, site: Site, *, remember: bool = False) -> Tensor:
    result: Tensor = plugin._ask(plugin.forward, raw, site=site, remember=remember)
    return result


def _right_inverse(plugin: Any, value: Tensor, site: Site) -> Any:
    return plugin._asked(plugin.right_inverse, value, site=site)
