"""Probe: what is measured of a weight."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from ignite.engine import Events
from ignite.engine.events import EventEnum
from torch import Tensor

from weightsmith.binding import Binding
from weightsmith.errors import PluginContractError
from weightsmith.kinds.base import WeightPlugin
from weightsmith.measurements import Measurement
from weightsmith.site import Site
from weightsmith.weights import raw_weights

__all__ = ["Probe", "tag"]


class Probe(WeightPlugin, abstract=True):
    """Measures weights; writes nothing. What it measures goes to the sinks. Acts on EPOCH_COMPLETED."""

    event: ClassVar[EventEnum] = Events.EPOCH_COMPLETED
    order: ClassVar[int] = 65
    acts_on_frozen: ClassVar[bool] = True
    sees_effective_weights: ClassVar[bool] = True
    supports_complex: ClassVar[bool] = True
    measures_raw: ClassVar[bool] = False
    """Whether the raw parameters of a weight that a parametrization computes are measured besides, as ``raw_<group>``;
    for a measure that asks nothing of the axes."""

    @abstractmethod
    def measure(self, weight: Tensor, site: Site) -> dict[str, Measurement]:
        """Group (``"weights"``) to what was measured of this weight; its tag becomes ``weights/conv1/weight``.
        ``site.gradient`` holds the last update's gradient, if there was one."""

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        values: dict[str, Measurement] = {}
        for weight, site in binding.all_targets():
            values |= self._measured("", weight.name, weight.effective_units(), site)
            for part in raw_weights([weight]) if self.measures_raw and weight.parametrized else []:
                values |= self._measured("raw_", part.name, part.units(), site)
        binding.publish(values)

    def _measured(self, prefix: str, name: str, weight: Tensor, site: Site) -> dict[str, Measurement]:
        """What one call measures, by tag."""
        try:
            measured = self._ask(self.measure, weight.detach(), site=site)
            if not isinstance(measured, dict):
                raise PluginContractError(
                    f"{type(self).__name__}.measure returned {measured!r}: return a dict of group to measurement"
                )
        except Exception as error:
            error.add_note(f"on weight {name!r}")
            raise
        return {tag(f"{prefix}{group}", name): value for group, value in measured.items()}

    def __call__(self, weight: Tensor, *, site: Site | None = None) -> dict[str, Measurement]:
        """What it measures of one tensor, outside a trainer."""
        measured: dict[str, Measurement] = self._call("measure", [weight], site)
        return measured


def tag(group: str, name: str) -> str:
    """Where a measurement of a weight stands: a folder for the group, one for the module, then the parameter.

    >>> tag("weights", "features.0.weight")
    'weights/features.0/weight'
    """
    module, _, leaf = name.rpartition(".")
    return "/".join(part for part in (group, module, leaf) if part)
