"""Pruning: weights that are taken out, and stay exactly zero.

A pruning is a constraint that remembers a mask. The mask is renewed whenever the plugin acts (``every``, ``after``,
``before``) and applied after every update, so that neither momentum nor an average brings a pruned weight back.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Constraint, Site, Trainer, WeightEvents, matrices
from weightsmith.binding import Binding
from weightsmith.kinds.base import copy_to
from weightsmith.plugin import Subscription
from weightsmith.tensors import accurate_dtype, from_unit_matrices, largest, unit_matrices

__all__ = [
    "SNIP",
    "KeepZeros",
    "MagnitudePruning",
    "MovementPruning",
    "RigL",
    "SparsityReport",
    "finalise",
    "sparsity_report",
]


class Pruning(Constraint, abstract=True):
    """What all prunings share: the mask, applied after every update, and a clean start for what grows again."""

    forward_gradient: ClassVar[Literal["autograd", "straight-through", "none"]] = "none"

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {"mask": torch.ones_like(weight, dtype=torch.bool)}

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0  # zeros are exact

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding = trainer.bind(self)

        def run() -> None:
            plugin = binding.current()
            if binding.due() or (binding.at_start() and not self.after):
                plugin.act(binding)
            else:
                plugin.enforce(binding)

        yield self.at or self.event, run
        if self.at:
            yield self.event, lambda: binding.current().enforce(binding)
        yield from self._further_subscriptions(binding)

    def _further_subscriptions(self, binding: Binding) -> Iterator[Subscription]:
        yield from ()

    def violation(self, weight: Tensor, site: Site) -> Tensor:
        """The largest magnitude of a weight that is pruned."""
        mask = site.state.get("mask")
        return torch.zeros(()) if mask is None else weight.masked_fill(mask, 0).abs().amax()

    def measured_violation(self, weight: Tensor, site: Site) -> float:
        return float(self.violation(weight, site)) if weight.numel() else 0.0

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        targets = binding.targets()
        self._prepare(targets)
        before = [target.site.state["mask"].clone() for target in targets]
        super().act(binding)
        for target, mask in zip(targets, before, strict=True):
            grown = target.site.state["mask"] & ~mask
            if grown.any():
                binding.forget_moments(target, grown)

    @torch.no_grad()
    def enforce(self, binding: Binding) -> None:
        for target in binding.targets():
            if target.site.state:
                target.tensor.mul_(target.site.state["mask"])


class RankedPruning(Pruning, abstract=True):
    """Keeps the weights with the highest scores.

    Args:
        sparsity: the share of weights that are zero, from 0 to below 1; usually a schedule such as
            ``cubic(0.0, 0.9, over="10 epochs")``.
        scope: among which weights the least are sought: ``"global"`` (default), all that are selected (and that the
            optimizer in progress holds); ``"layer"``, each weight on its own; ``"unit"``, each unit on its own;
            ``"2:4"`` and the like, two of every four consecutive inputs, for which sparsity is a constant 0.5.
    """

    sparsity: float
    scope: str = "global"

    def validate(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ConfigurationError(f"{self!r}: sparsity must be from 0 to below 1, not {self.sparsity}")
        pattern = _pattern(self.scope)
        if self.scope not in ("global", "layer", "unit") and pattern is None:
            raise ConfigurationError(f"{self!r}: scope must be 'global', 'layer', 'unit' or a pattern such as '2:4'")
        if pattern and not (1 <= pattern[0] <= pattern[1] and self.sparsity == 1 - pattern[0] / pattern[1]):
            raise ConfigurationError(f"{self!r}: with scope={self.scope!r} sparsity is 1 - n / m, and constant")

    def project(self, weight: Tensor, site: Site) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        alive = weight * site.state["mask"]
        mask = self._mask(self._scores(alive, site), site)
        return alive * mask, {"mask": mask}

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        if self.scope == "global" and weights:
            self._project_together(weights, sites)
        else:
            super().project_all_(weights, sites)

    def _project_together(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        alive = [weight * site.state["mask"] for weight, site in zip(weights, sites, strict=True)]
        scores = [self._scores(weight, site).flatten() for weight, site in zip(alive, sites, strict=True)]
        together = torch.cat([score.to(scores[0].device, accurate_dtype(score.dtype)) for score in scores])
        kept = largest(together.unsqueeze(0), _kept(together.numel(), self.sparsity))[0]
        masks = torch.split(kept, [score.numel() for score in scores])
        for weight, site, values, flat in zip(weights, sites, alive, masks, strict=True):
            mask = flat.reshape(weight.shape).to(weight.device)
            site.state["mask"].copy_(mask)
            weight.copy_(values * mask)

    @abstractmethod
    def _scores(self, alive: Tensor, site: Site) -> Tensor:
        """How much each weight matters, given the weight with zeros where it is pruned; the same shape."""

    def _mask(self, scores: Tensor, site: Site) -> Tensor:
        pattern = _pattern(self.scope)
        if pattern is not None:
            return _pattern_mask(self, scores, pattern, site)
        if self.scope == "unit":
            rows = unit_matrices(scores, site.unit_dims)[0]
            kept = largest(rows, _kept(rows.shape[1], self.sparsity))
            return from_unit_matrices(kept, scores, site.unit_dims).bool()
        return largest(scores.reshape(1, -1), _kept(scores.numel(), self.sparsity)).reshape(scores.shape)


class MagnitudePruning(RankedPruning):
    """w ← mask ⊙ w, with the largest magnitudes kept: of n weights ⌊sparsity · n⌋ are zero, of equal ones the last.

    Han et al. (2015), "Learning both weights and connections for efficient neural networks", arXiv:1506.02626; Zhu &
    Gupta (2017), "To prune, or not to prune", arXiv:1710.01878, for growing sparsity. What is pruned stays pruned while
    sparsity grows; where it falls, weights come back from zero, with clean optimizer state.

    Args:
        sparsity: the share of weights that are zero, from 0 to below 1; usually a schedule such as
            ``cubic(0.0, 0.9, over="10 epochs")``.
        scope: among which weights the least are sought: ``"global"`` (default), all that are selected (and that the
            optimizer in progress holds); ``"layer"``, each weight on its own; ``"unit"``, each unit on its own;
            ``"2:4"`` and the like, two of every four consecutive inputs, for which sparsity is a constant 0.5.

    >>> MagnitudePruning(0.5)(torch.tensor([[3.0, -4.0], [0.5, 1.0]]))
    tensor([[ 3., -4.],
            [ 0.,  0.]])
    """

    def _scores(self, alive: Tensor, site: Site) -> Tensor:
        return alive.abs()


class MovementPruning(RankedPruning):
    """w ← mask ⊙ w, with those kept that moved away from zero: the highest −Σ w · ∂L/∂w over the updates so far.

    Sanh, Wolf & Rush (2020), "Movement pruning: adaptive sparsity by fine-tuning", arXiv:2005.07683; made for going on
    from a pretrained model. Here a pruned weight is zero and keeps its score, so it does not come back while sparsity
    grows. L includes the penalties.

    Args:
        sparsity: the share of weights that are zero, from 0 to below 1; usually a schedule that begins at 0: no weight
            has moved before the first update.
        scope: as for :class:`MagnitudePruning`.

    >>> from weightsmith import cubic
    >>> MovementPruning(cubic(0.0, 0.9, over="10 epochs"), every=100, after="1 epochs")
    MovementPruning(sparsity=cubic(0.0, 0.9, over='10 epochs'), every=100, after='1 epochs')
    """

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {**super().init(weight, site), "score": torch.zeros_like(weight, dtype=accurate_dtype(weight.dtype))}

    def _further_subscriptions(self, binding: Binding) -> Iterator[Subscription]:
        yield WeightEvents.GRADIENTS_COMPUTED, lambda: self._follow(binding)

    def _scores(self, alive: Tensor, site: Site) -> Tensor:
        return site.state["score"].masked_fill(~site.state["mask"], -math.inf)

    @torch.no_grad()
    def _follow(self, binding: Binding) -> None:
        targets = [target for target in binding.targets() if target.gradient is not None]
        self._prepare(targets)
        for target in targets:
            gradient = target.gradient
            if gradient is not None:
                target.site.state["score"].sub_(target.tensor * gradient)


class SNIP(RankedPruning):
    """w ← mask ⊙ w, with the highest |w · ∂L/∂w| of the first update kept: once, before the first step.

    Lee, Ajanthan & Torr (2019), "SNIP: single-shot network pruning based on connection sensitivity", arXiv:1810.02340.
    With ``Trainer(accumulate=n)`` the gradient is the mean over n batches. L includes the penalties.

    Args:
        sparsity: the share of weights that are zero, from 0 to below 1.
        scope: as for :class:`MagnitudePruning`.

    >>> SNIP(0.9)
    SNIP(sparsity=0.9)
    """

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {**super().init(weight, site), "found": torch.tensor(False)}

    def _further_subscriptions(self, binding: Binding) -> Iterator[Subscription]:
        yield WeightEvents.GRADIENTS_COMPUTED, lambda: self._find(binding)

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        for weight, site in zip(weights, sites, strict=True):
            weight.mul_(site.state["mask"])

    def project(self, weight: Tensor, site: Site) -> Tensor:  # type: ignore[override]
        return weight * site.state["mask"]

    def _scores(self, alive: Tensor, site: Site) -> Tensor:
        return torch.zeros_like(alive) if site.gradient is None else (alive * site.gradient).abs()

    @torch.no_grad()
    def _find(self, binding: Binding) -> None:
        targets = binding.targets()
        self._prepare(targets)
        if not targets or all(target.site.state["found"] for target in targets):
            return
        weights, sites = [target.tensor for target in targets], [target.site for target in targets]
        if self.scope == "global":
            self._project_together(weights, sites)
        else:
            self._singly(super().project, copy_to, weights, sites, weights)
        for site in sites:
            site.state["found"].fill_(True)


class RigL(Pruning):
    """w ← mask ⊙ w with a mask that is sparse from the start and moves: whenever it acts, the smallest ``fraction`` of
    the weights is dropped, and as many grown where |∂L/∂w| is largest, from zero and with clean optimizer state.

    Evci et al. (2020), "Rigging the lottery: making all tickets winners", arXiv:1911.11134, algorithm 1, with the same
    sparsity in every weight; the first mask is drawn uniformly. The paper's schedule is
    ``RigL(0.9, cosine(0.3, 0.0), every=100, before=…)``.

    Args:
        sparsity: the share of weights that are zero, from 0 to below 1; constant.
        fraction: the share of those left that is dropped and grown, from 0 to 1. Default 0.3.

    >>> RigL(0.5)(torch.ones(2, 4)).sum()
    tensor(4.)
    """

    sparsity: float
    fraction: float = 0.3

    def validate(self) -> None:
        if not (0 <= self.sparsity < 1 and 0 <= self.fraction <= 1):
            raise ConfigurationError(f"{self!r}: sparsity must be from 0 to below 1, fraction from 0 to 1")

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        drawn = torch.rand(weight.shape, generator=site.generator, device=weight.device)
        kept = largest(drawn.reshape(1, -1), _kept(weight.numel(), self.sparsity))
        return {"mask": kept.reshape(weight.shape)}

    def project(self, weight: Tensor, site: Site) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        mask = site.state["mask"]
        if site.gradient is None or site.update == 0:
            return weight * mask, {"mask": mask}
        alive = int(mask.sum())
        moved = math.floor(self.fraction * min(alive, mask.numel() - alive))
        stays = _best(weight.abs(), mask, alive - moved)
        grown = _best(site.gradient.abs(), ~stays, moved)
        return weight * stays, {"mask": stays | grown}


class KeepZeros(Pruning):
    """w ← mask ⊙ w with the mask of what was not zero when the run began, or the plugin was attached: goes on training
    a sparse model as sparse as it is.

    >>> KeepZeros()(torch.tensor([[3.0, 0.0]]))
    tensor([[3., 0.]])
    """

    remembers_start: ClassVar[bool] = True

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {"mask": weight != 0}

    def project(self, weight: Tensor, site: Site) -> Tensor:
        return weight * site.state["mask"]


@dataclass(frozen=True)
class SparsityReport:
    """How sparse weights are.

    Attributes:
        zeros: name to how many values are zero.
        sizes: name to how many there are.
    """

    zeros: Mapping[str, int]
    sizes: Mapping[str, int]

    @property
    def total(self) -> float:
        """The share of zeros in all weights together."""
        return sum(self.zeros.values()) / max(1, sum(self.sizes.values()))

    def __str__(self) -> str:
        width = max(map(len, ["together", *self.sizes]))
        lines = [
            f"{name:{width}}  {self.zeros[name] / max(1, size):6.1%} of {size:,}" for name, size in self.sizes.items()
        ]
        return "\n".join([*lines, f"{'together':{width}}  {self.total:6.1%} of {sum(self.sizes.values()):,}"])


def sparsity_report(trainer: Trainer) -> SparsityReport:
    """How sparse each weight with two axes or more is, in a trainer's models."""
    weights = trainer.weights(matrices)
    zeros = {name: int((weight == 0).sum()) for name, weight in weights.items()}
    return SparsityReport(zeros, {name: weight.numel() for name, weight in weights.items()})


def finalise(trainer: Trainer) -> SparsityReport:
    """Make the masks permanent: every pruning is replaced by :class:`KeepZeros` on the same weights, so that training
    can go on without another weight pruned or grown. A weight that a mask keeps, but that is exactly zero, stays zero.

    Raises:
        ConfigurationError: no pruning is attached.
    """
    prunings = [plugin for plugin in trainer.plugins if isinstance(plugin, Pruning)]
    if not prunings:
        raise ConfigurationError("finalise: no pruning is attached")
    for plugin in prunings:
        trainer.detach(plugin)
        trainer.attach(KeepZeros(where=plugin.where))
    return sparsity_report(trainer)


def _kept(size: int, sparsity: float) -> int:
    return size - math.floor(sparsity * size + 1e-9)


def _best(scores: Tensor, among: Tensor, count: int) -> Tensor:
    """Which ``count`` of those in ``among`` score highest."""
    return largest(scores.masked_fill(~among, -1).reshape(1, -1), count).reshape(scores.shape)


def _pattern(scope: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", scope)
    return None if found is None else (int(found[1]), int(found[2]))


def _pattern_mask(plugin: RankedPruning, scores: Tensor, pattern: tuple[int, int], site: Site) -> Tensor:
    inputs, (kept, of) = next(iter(site.unit_dims), 0), pattern
    if scores.ndim < 2 or scores.shape[inputs] % of:
        raise ConfigurationError(
            f"{plugin!r}: weight {site.name!r} has shape {tuple(scores.shape)}: needed is a number of inputs (axis "
            f"{inputs}) that {of} divides"
        )
    last = scores.movedim(inputs, -1)
    return largest(last.reshape(-1, of), kept).reshape(last.shape).movedim(-1, inputs)
