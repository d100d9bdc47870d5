"""Which units no longer learn."""

from __future__ import annotations

from torch import Tensor

__all__ = ["are_dormant"]


def are_dormant(activity: Tensor, threshold: float) -> Tensor:
    """Which units are at most ``threshold`` times as active as their layer's mean; boolean, of the same shape.

    >>> from torch import tensor
    >>> are_dormant(tensor([0.0, 1.0, 5.0]), 0.5)
    tensor([ True,  True, False])
    """
    return activity <= threshold * activity.mean()
