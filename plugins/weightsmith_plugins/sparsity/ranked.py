"""Prunings that keep the weights with the highest scores."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor
from weightsmith import ConfigurationError, Site
from weightsmith.binding import Binding
from weightsmith.joint import largest_of_all, size_of
from weightsmith.kinds.base import copy_to
from weightsmith.ranking import largest, largest_of_groups
from weightsmith.site import Sharding
from weightsmith.targets import Targets
from weightsmith.tensors import copy_, from_unit_matrices, joined, keep_, parted, unit_matrices

from weightsmith_plugins.shapes import no_equal_groups
from weightsmith_plugins.sparsity.masks import Pruning, count_kept, mask_, mask_smallest_, masked

__all__ = ["MagnitudePruning", "RankedPruning"]


class RankedPruning(Pruning, abstract=True):
    """Keeps the weights with the highest scores.

    Args:
        sparsity, scope: as for :class:`MagnitudePruning`.
    """

    sparsity: float
    scope: str = "global"

    def validate(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ConfigurationError(f"{self!r}: sparsity must be from 0 to below 1, not {self.sparsity}")
        pattern = _pattern(self.scope)
        if self.scope not in ("global", "layer", "unit") and pattern is None:
            raise ConfigurationError(f"{self!r}: scope must be 'global', 'layer', 'unit' or a pattern such as '2:4'")
        if pattern and not (pattern[0] <= pattern[1] and math.isclose(self.sparsity, 1 - pattern[0] / pattern[1])):
            exact = f"1 - {pattern[0]} / {pattern[1]}"
            raise ConfigurationError(
                f"{self!r}: with scope={self.scope!r} sparsity is constant: write sparsity={exact}"
            )

    @property
    def handling(self) -> Sharding:
        return "joint" if self.scope in ("global", "layer") else "units"

    def misfit(self, weight: Tensor, site: Site) -> str:
        pattern = _pattern(self.scope)
        return no_equal_groups(weight, site, pattern[1]) if pattern else ""

    def project(self, weight: Tensor, site: Site) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        return self._ranked(weight, site)

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        self._rank_all_(weights, sites)

    def _ranked(self, weight: Tensor, site: Site) -> tuple[Tensor, dict[str, Tensor]]:
        """The weight with the least taken out, and the new mask."""
        alive, scores = masked(weight, site), self._scores(weight, site)
        self._set_back(scores, site.state["mask"])
        mask = self._mask(scores, site)
        return alive.masked_fill(~mask, 0), {"mask": mask}

    def _rank_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        """Take the least out of all weights, in place, and renew their masks."""
        if self.scope != "global":
            self._singly(self._ranked, copy_to, weights, sites, weights)
            return
        groups: dict[str | None, list[tuple[Tensor, Site]]] = {}
        for weight, site in zip(weights, sites, strict=True):
            groups.setdefault(site.optimizer, []).append((weight, site))
        for group in groups.values():
            self._rank_together_(group)

    def _rank_together_(self, group: Sequence[tuple[Tensor, Site]]) -> None:
        sites = [site for _, site in group]
        weights, masks = [weight for weight, _ in group], [site.state["mask"] for site in sites]
        scores, standing = joined([self._scores(weight, site) for weight, site in group]), joined(masks)
        self._set_back(scores, standing)
        count = count_kept(sum(map(size_of, sites)), self.sparsity)
        kept = largest_of_all(scores, [weight.numel() for weight in weights], sites, count)
        copy_(masks, parted(kept, masks))
        mask_(weights, parted(kept.logical_and_(standing), weights))  # what comes back starts from zero

    @abstractmethod
    def _scores(self, weight: Tensor, site: Site) -> Tensor:
        """How much each value matters, in a new tensor of the same shape."""

    def _set_back(self, scores: Tensor, standing: Tensor) -> None:
        """Give what is not standing the least score, in place. Where scores are magnitudes, that is 0."""
        keep_(scores, standing)

    def _mask(self, scores: Tensor, site: Site) -> Tensor:
        pattern = _pattern(self.scope)
        if pattern is not None:
            return largest_of_groups(scores, site.unit_dims[0], *pattern)
        if self.scope == "unit":
            rows = unit_matrices(scores, site.unit_dims)[0]
            kept = largest(rows, count_kept(rows.shape[1], self.sparsity))
            return from_unit_matrices(kept, scores, site.unit_dims).bool()
        count = count_kept(size_of(site), self.sparsity)
        return largest_of_all(scores.reshape(-1), [scores.numel()], [site], count).reshape(scores.shape)


class MagnitudePruning(RankedPruning):
    """w ← mask ⊙ w, with the largest magnitudes kept: of n weights ⌊sparsity · n⌋ are zero, of equal ones the last.

    Han et al. (2015), "Learning both weights and connections for efficient neural networks", arXiv:1506.02626; Zhu &
    Gupta (2017), "To prune, or not to prune", arXiv:1710.01878, for growing sparsity. What is pruned stays pruned while
    sparsity grows; where it falls, weights come back from zero, with clean optimizer state.

    Args:
        sparsity: the share of weights that are zero, from 0 to below 1; usually a schedule such as
            ``cubic(0.0, 0.9, over="10 epochs")``.
        scope: among which weights the least are sought: ``"global"`` (default), all that are selected and that one
            optimizer holds; ``"layer"``, each weight on its own; ``"unit"``, each unit on its own; ``"2:4"`` and the
            like, two of every four consecutive inputs, for which sparsity is a constant 0.5.

    >>> MagnitudePruning(0.5)(torch.tensor([[3.0, -4.0], [0.5, 1.0]]))
    tensor([[ 3., -4.],
            [ 0.,  0.]])
    """

    def _scores(self, weight: Tensor, site: Site) -> Tensor:
        return weight.abs()

    def prune(self, binding: Binding, targets: Targets) -> None:
        self._prepare(targets)
        if not self._take_out_(targets.tensors, targets.sites):
            super().prune(binding, targets)

    def _take_out_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> bool:
        """Take the least out by the faster way, where none comes back; whether that was done."""
        together = self.scope == "global" and len({site.optimizer for site in sites}) == 1
        if not together or not all(site.is_whole for site in sites):
            return False
        count = count_kept(sum(map(size_of, sites)), self.sparsity)
        return mask_smallest_(weights, [site.state["mask"] for site in sites], count)


def _pattern(scope: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", scope)
    return None if found is None else (int(found[1]), int(found[2]))
