"""A mask that is sparse from the start, and moves."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Site
from weightsmith.joint import largest_of_all, size_of
from weightsmith.ranking import largest
from weightsmith.targets import Target, Targets
from weightsmith.tensors import joined

from weightsmith_plugins.sparsity.masks import Pruning, count_kept, masked

__all__ = ["RigL"]


class RigL(Pruning):
    """w ← mask ⊙ w with a mask that is sparse from the start and moves: whenever it acts, the smallest ``fraction`` of
    the weights is dropped, and as many grown where |∂L/∂w| is largest, from zero and with clean optimizer state.

    Evci et al. (2020), "Rigging the lottery: making all tickets winners", arXiv:1911.11134, algorithm 1, with the same
    sparsity in every weight; the first mask is drawn uniformly. The paper's schedule is
    ``RigL(0.9, cosine(0.3, 0.0), every=100, before=…)``. Where a weight's gradient is not finite, its mask stays.

    Args:
        sparsity: the share of weights that are zero, from 0 to below 1; constant.
        fraction: the share of those left that is dropped and grown, from 0 to 1. Default 0.3.

    >>> RigL(0.5)(torch.ones(2, 4)).sum()
    tensor(4.)
    """

    uses_gradients: ClassVar[bool] = True
    remembers_start: ClassVar[bool] = True

    sparsity: float
    fraction: float = 0.3

    def validate(self) -> None:
        if not (0 <= self.sparsity < 1 and 0 <= self.fraction <= 1):
            raise ConfigurationError(f"{self!r}: sparsity must be from 0 to below 1, fraction from 0 to 1")

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        drawn = torch.rand(site.shape, generator=site.generator, device=weight.device)
        kept = largest(drawn.reshape(1, -1), count_kept(drawn.numel(), self.sparsity))
        return {"mask": site.part(kept.reshape(site.shape))}

    def project(self, weight: Tensor, site: Site) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        mask, alive = site.state["mask"], masked(weight, site)
        if site.gradient is None or site.update == 0 or site.most((~site.gradient.isfinite()).sum()):
            return alive, {"mask": mask}
        count = int(site.total(mask.sum()))
        moved = math.floor(self.fraction * min(count, size_of(site) - count))
        stays = _best(alive.abs(), mask, count - moved, site)
        grown = _best(site.gradient.abs(), ~stays, moved, site)
        return alive.masked_fill(~stays, 0), {"mask": stays | grown}

    def _standing(self, target: Target) -> Tensor:
        return target.site.state["mask"] & (target.tensor != 0)

    def _grown(self, targets: Targets, standing: Tensor) -> Tensor:
        """Those that were dropped just now, too."""
        masks, alive = joined([target.site.state["mask"] for target in targets]), joined(targets.tensors) != 0
        return masks > standing.logical_and_(alive)


def _best(scores: Tensor, among: Tensor, count: int, site: Site) -> Tensor:
    """Which ``count`` of those in ``among`` score highest."""
    row = scores.masked_fill(~among, -1).reshape(-1)
    return largest_of_all(row, [len(row)], [site], count).reshape(scores.shape)
