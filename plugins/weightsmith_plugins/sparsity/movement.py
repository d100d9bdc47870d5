"""Prunings that rank weights by what their gradients say."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import Site, WeightEvents
from weightsmith.binding import Binding
from weightsmith.distributed import any_process
from weightsmith.plugin import Subscription
from weightsmith.targets import Target, Targets
from weightsmith.tensors import accurate_dtype

from weightsmith_plugins.sparsity.masks import mask_, masked
from weightsmith_plugins.sparsity.ranked import RankedPruning

__all__ = ["SNIP", "GradientPruning", "MovementPruning"]

logger = logging.getLogger(__name__)


class GradientPruning(RankedPruning, abstract=True):
    """Looks at the gradient once per update: at the first evaluation of a closure, or the one that replaced it, and not
    in an update that is skipped. A weight without a gradient says nothing: it is not ranked, and a warning names it."""

    uses_gradients: ClassVar[bool] = True

    def _further_subscriptions(self, binding: Binding) -> Iterator[Subscription]:
        named: set[str] = set()

        def look() -> None:
            if binding.trainer.is_skipping or not binding.is_first_evaluation() or not self._looks(binding):
                return
            for targets in binding.rounds():
                self._prepare(targets)
                self._name_idle([target for target in targets if target.gradient is None], named)
                self._follow(binding, targets)

        yield WeightEvents.GRADIENTS_COMPUTED, look

    def _name_idle(self, targets: Sequence[Target], named: set[str]) -> None:
        idle = [target.weight.name for target in targets if self._is_unranked(target.site)]
        if new := [name for name in idle if name not in named]:
            named.update(new)
            logger.warning("%r: no gradient reached %s, so they are not ranked and none of them is pruned", self, new)

    def _looks(self, binding: Binding) -> bool:
        """Whether the gradients of this update say something."""
        return True

    @abstractmethod
    def _is_unranked(self, site: Site) -> bool:
        """Whether nothing has been learned from a gradient of this weight yet."""

    @abstractmethod
    def _follow(self, binding: Binding, targets: Sequence[Target]) -> None:
        """Learn from the gradients of these weights; some have none."""


class MovementPruning(GradientPruning):
    """w ← mask ⊙ w, with those kept that moved away from zero: the highest −Σ w · ∂L/∂w over the updates so far.

    Sanh, Wolf & Rush (2020), "Movement pruning: adaptive sparsity by fine-tuning", arXiv:2005.07683; made for going on
    from a pretrained model. Here a pruned weight is zero and keeps its score, so it does not come back while sparsity
    grows. L includes the penalties. A summand that is not finite counts as 0. A weight that has had no gradient yet
    (frozen, or in a branch that is not used) is not ranked: none of it is pruned, and a warning names it.

    Args:
        sparsity: the share of weights that are zero, from 0 to below 1; usually a schedule that begins at 0: no weight
            has moved before the first update.
        scope: as for :class:`MagnitudePruning`.

    >>> from weightsmith import cubic
    >>> MovementPruning(cubic(0.0, 0.9, over="10 epochs"), every=100, after="1 epochs")
    MovementPruning(sparsity=cubic(0.0, 0.9, over='10 epochs'), every=100, after='1 epochs')
    """

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        score = torch.zeros_like(weight, dtype=accurate_dtype(weight.dtype))
        return {**super().init(weight, site), "score": score, "moved": torch.tensor(False)}

    def _scores(self, weight: Tensor, site: Site) -> Tensor:
        return site.state["score"].clone()

    def _set_back(self, scores: Tensor, standing: Tensor) -> None:
        scores.masked_fill_(~standing, -math.inf)

    def _renewed(self, targets: Targets) -> Targets:
        return Targets(target for target in targets if not self._is_unranked(target.site))

    def _is_unranked(self, site: Site) -> bool:
        return not site.state["moved"]

    @torch.no_grad()
    def _follow(self, binding: Binding, targets: Sequence[Target]) -> None:
        for target in targets:
            if target.gradient is not None:
                score = target.site.state["score"]
                score.sub_((target.tensor.to(score.dtype) * target.gradient).nan_to_num(0, 0, 0))
                target.site.state["moved"].fill_(True)


class SNIP(GradientPruning):
    """w ← mask ⊙ w, with the highest |w · ∂L/∂w| of the first update kept: once, before the first step.

    Lee, Ajanthan & Torr (2019), "SNIP: single-shot network pruning based on connection sensitivity", arXiv:1810.02340.
    With ``Trainer(accumulate=n)`` the gradient is the mean over n batches. L includes the penalties. A weight without a
    gradient (frozen, or in a branch that is not used) is not ranked: none of it is pruned, and a warning names it. An
    update that is skipped, or whose gradients are not finite, does not count as the first; with ``after``, the first is
    one later.

    Args:
        sparsity: the share of weights that are zero, from 0 to below 1.
        scope: as for :class:`MagnitudePruning`.

    >>> SNIP(0.9)
    SNIP(sparsity=0.9)
    """

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {**super().init(weight, site), "found": torch.tensor(False)}

    def project(self, weight: Tensor, site: Site) -> Tensor:  # type: ignore[override]
        return masked(weight, site)

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        mask_(weights, [site.state["mask"] for site in sites])

    def _scores(self, weight: Tensor, site: Site) -> Tensor:
        scores = weight.to(accurate_dtype(weight.dtype))
        return torch.zeros_like(scores) if site.gradient is None else (scores * site.gradient).abs()

    def _looks(self, binding: Binding) -> bool:
        return binding.due()

    def _is_unranked(self, site: Site) -> bool:
        return not site.state["found"]

    @torch.no_grad()
    def _follow(self, binding: Binding, targets: Sequence[Target]) -> None:
        new = [target for target in targets if self._is_unranked(target.site)]
        if not new:
            return
        ranked = [target for target in new if target.gradient is not None]
        gradients = [target.gradient for target in ranked if target.gradient is not None]
        if any_process(not all(bool(gradient.isfinite().all()) for gradient in gradients)):
            logger.warning("%r: a gradient is not finite, so it waits for the next update", self)
            return
        self._rank_all_([target.tensor for target in ranked], [target.site for target in ranked])
        for target in new:
            target.site.state["found"].fill_(True)
