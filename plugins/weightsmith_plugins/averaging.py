"""Running averages of weights, kept beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import Average, ConfigurationError, Site
from weightsmith.site import Sharding
from weightsmith.tensors import lerp_

__all__ = ["EMA", "SWA"]


class EMA(Average):
    """mean ← decay · mean + (1 − decay) · w: an average that forgets, over about 1 / (1 − decay) updates.

    Polyak & Juditsky (1992), "Acceleration of stochastic approximation by averaging"; Tarvainen & Valpola (2017),
    arXiv:1703.01780. An average of points of a convex set stays in the set.

    Args:
        decay: what is kept of the mean per update, from 0 to below 1. Default 0.999.

    >>> EMA(0.9)(torch.tensor([1.0]), torch.tensor([2.0]))
    tensor([1.1000])
    """

    sharding: ClassVar[Sharding] = "values"

    decay: float = 0.999

    def validate(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigurationError(f"{self!r}: decay must be from 0 to below 1")

    def average(self, mean: Tensor, weight: Tensor, site: Site) -> Tensor:
        return torch.lerp(mean, weight.to(mean.dtype), 1 - self.decay)

    def average_all_(self, means: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        lerp_(means, [weight.to(mean.dtype) for weight, mean in zip(weights, means, strict=True)], 1 - self.decay)


class SWA(Average):
    """mean ← mean + (w − mean) / (n + 1), with n the weights averaged so far: all count alike.

    Izmailov et al. (2018), "Averaging weights leads to wider optima and better generalization", arXiv:1803.05407; which
    weights are averaged say the kind's ``after`` and ``every``, such as ``SWA(after="75 epochs", every=100)``. Batch
    norm wants new statistics for the means: ``trainer.averaged(statistics_from=batches)``.

    >>> SWA()(torch.tensor([5.0]), torch.tensor([2.0]))  # the first
    tensor([2.])
    """

    sharding: ClassVar[Sharding] = "values"

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {"count": torch.tensor(0)}

    def average(  # type: ignore[override]
        self, mean: Tensor, weight: Tensor, site: Site
    ) -> tuple[Tensor, dict[str, Tensor]]:
        count = site.state["count"] + 1
        return mean + (weight.to(mean.dtype) - mean) / count, {"count": count}
