"""Which units no longer learn."""

from __future__ import annotations

import torch
from torch import Tensor
from weightsmith import Site

__all__ = ["are_dormant", "mean_over_units"]


def are_dormant(activity: Tensor, threshold: float, site: Site) -> Tensor:
    """Which units in hand are at most ``threshold`` times as active as their layer's mean; boolean, of the same shape.

    >>> activity = torch.tensor([[0.0], [1.0], [5.0]])
    >>> are_dormant(activity, 0.5, Site.alone(torch.ones(3, 2))).flatten()
    tensor([ True,  True, False])
    """
    return activity <= threshold * mean_over_units(activity, site)


def mean_over_units(of_units: Tensor, site: Site) -> Tensor:
    """The mean over all units of a weight, those of other parts included; 0-d."""
    total, count = site.total(torch.stack([of_units.sum(), of_units.new_tensor(of_units.numel())]))
    mean: Tensor = total / count
    return mean
