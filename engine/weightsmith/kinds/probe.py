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
from weightsmith.measurements import Measurement, is_measurement
from weightsmith.site import Site
from weightsmith.targets import Targets
from weightsmith.weights import Weight, raw_weights

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
        binding.publish(self.measured(binding))

    def measured(self, binding: Binding) -> dict[str, Measurement]:
        """What it measures of all its weights now, by tag; inside an update, of that optimizer's."""
        values: dict[str, Measurement] = {}
        optimizer = binding.trainer.state.optimizer
        every = binding.all_targets()
        theirs = every if optimizer is None else Targets(t for t in every if t.weight.optimizer == optimizer)
        for target in binding.each(theirs):
            values |= self._measured_of("", target.weight, self._seen(target), target.site)
            for part in raw_weights([target.weight]) if self.measures_raw and target.weight.parametrized else []:
                values |= self._measured_of("raw_", part, part.units(), target.site)
        return values

    def _measured_of(self, prefix: str, weight: Weight, seen: Tensor, site: Site) -> dict[str, Measurement]:
        """What one call measures, by tag."""
        try:
            measured = self._ask(self.measure, seen.detach(), site=site)
            if not (isinstance(measured, dict) and all(is_measurement(value) for value in measured.values())):
                raise PluginContractError(
                    f"{type(self).__name__}.measure returned {measured!r}: return a dict of group to a number, a 0-d "
                    "tensor, a Histogram or a Picture"
                )
        except Exception as error:
            error.add_note(f"on weight {weight.name!r}")
            raise
        return {tag(f"{prefix}{group}", weight.name, weight.leaf): value for group, value in measured.items()}

    def __call__(self, weight: Tensor, *, site: Site | None = None) -> dict[str, Measurement]:
        """What it measures of one tensor, outside a trainer."""
        measured: dict[str, Measurement] = self._call("measure", [weight], site)
        return measured


def tag(group: str, name: str, leaf: str | None = None) -> str:
    """Where a measurement of a weight stands: a folder for the group, one for the module, then the parameter.

    Args:
        group: what is measured.
        name: the weight's name.
        leaf: the attribute under which its module has it. Default: what follows the name's last dot.

    >>> tag("weights", "features.0.weight"), tag("weights", "fc.weight.up", "weight")
    ('weights/features.0/weight', 'weights/fc/weight.up')
    """
    start = f".{name}".rfind(f".{name.rpartition('.')[2] if leaf is None else leaf}")
    return "/".join(part for part in (group, name[: max(0, start - 1)], name[start:]) if part)
