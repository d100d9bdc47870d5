"""Parametrization: a layer that computes with a function of its raw parameter."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from ignite.engine import Events
from ignite.engine.events import EventEnum
from torch import Tensor

from weightsmith.binding import Binding
from weightsmith.kinds.base import WeightPlugin
from weightsmith.plugin import Subscription
from weightsmith.selection import Selector, matrices
from weightsmith.site import Site

if TYPE_CHECKING:
    from weightsmith.trainer import Trainer

__all__ = ["Parametrization"]


class Parametrization(WeightPlugin, abstract=True):
    """Lets a layer compute with a function of its raw parameter, by torch's parametrizations, once it is attached."""

    event: ClassVar[EventEnum] = Events.STARTED
    order: ClassVar[int] = 0
    default_where: ClassVar[Selector] = matrices
    sees_effective_weights: ClassVar[bool] = True

    @abstractmethod
    def forward(self, weight: Tensor, site: Site) -> Tensor:
        """What the layer computes with, given the raw parameter; same shape, differentiable."""

    @abstractmethod
    def right_inverse(self, weight: Tensor, site: Site) -> Tensor:
        """A raw parameter from which :meth:`forward` gives ``weight``."""

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        trainer.bind(self).parametrize(_forward, _right_inverse)
        yield from ()

    def act(self, binding: Binding) -> None:
        """Nothing to do on events: the layer itself calls :meth:`forward`."""

    def __call__(self, weight: Tensor, *, site: Site | None = None) -> Tensor:
        """What the layer would compute with, outside a trainer."""
        result: Tensor = self._call("forward", [weight], site)
        return result


def _forward(plugin: Any, raw: Tensor, site: Site) -> Tensor:
    result: Tensor = plugin._ask(plugin.forward, raw, site=site)
    return result


def _right_inverse(plugin: Any, value: Tensor, site: Site) -> Tensor:
    result: Tensor = plugin._ask(plugin.right_inverse, value, site=site)
    return result
