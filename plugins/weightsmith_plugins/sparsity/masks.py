"""What all prunings share: a mask that lasts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from weightsmith import Constraint, Site, Trainer
from weightsmith.binding import Binding
from weightsmith.plugin import Subscription
from weightsmith.ranking import in_blocks, keep_largest_
from weightsmith.site import Sharding
from weightsmith.targets import Target, Targets
from weightsmith.tensors import joined, keep_, parted
from weightsmith.weights import Weight

from weightsmith_plugins.native.compiling import compiled_function, in_one_pass

__all__ = ["KeepZeros", "Pruning", "count_kept", "mask_", "mask_smallest_", "masked"]


class Pruning(Constraint, abstract=True):
    """What all prunings share: the mask, applied after every update, and a clean start for what grows again."""

    sharding: ClassVar[Sharding] = "joint"
    forward_gradient: ClassVar[Literal["autograd", "straight-through", "none"]] = "none"
    puts_zeros: ClassVar[bool] = True
    masks_raw: ClassVar[bool] = True

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {"mask": torch.ones_like(weight, dtype=torch.bool)}

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0  # zeros are exact

    def refuse(self, weights: Sequence[Weight]) -> None:
        super().refuse([weight for weight in weights if not weight.keeps_zeros])

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding = trainer.bind(self)

        def run() -> None:
            if _begins(binding) if binding.at_start() else binding.due():
                binding.current().act(binding)
            else:
                keep()

        def keep() -> None:
            if self.remembers_start:
                binding.begin()
            _apply_masks(binding.targets())

        yield self.at or self.event, run
        if self.at:
            yield self.event, keep
        yield from self._further_subscriptions(binding)

    def _further_subscriptions(self, binding: Binding) -> Iterator[Subscription]:
        yield from ()

    def violation(self, weight: Tensor, site: Site) -> Tensor:
        """The largest magnitude of a weight that is pruned."""
        mask = site.state.get("mask")
        left = weight.new_zeros(1) if mask is None or not weight.numel() else weight.masked_fill(mask, 0).abs()
        return left.amax()

    def measured_violation(self, weight: Tensor, site: Site) -> float:
        return float(site.most(self.violation(weight, site)))

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        for targets in binding.rounds():
            self.prune(binding, targets)

    def prune(self, binding: Binding, targets: Targets) -> None:
        if not targets:
            return
        self._prepare(targets)
        before = joined([self._standing(target) for target in targets])
        renewed = self._renewed(targets)
        self.project_all_(renewed.tensors, renewed.sites)
        grown = self._grown(targets, before)
        if not grown.numel() or not grown.view(torch.uint8).amax():  # much faster than any()
            return
        for target, some in zip(targets, parted(grown, targets.tensors), strict=True):
            if some.any():
                binding.forget_moments(target, some)

    def _standing(self, target: Target) -> Tensor:
        """What :meth:`_grown` needs to know of a weight before its mask is renewed; boolean, of its shape."""
        return target.site.state["mask"]

    def _grown(self, targets: Targets, standing: Tensor) -> Tensor:
        """Which values grow from zero, given what was standing; :func:`joined`."""
        return joined([target.site.state["mask"] for target in targets]) > standing

    def _renewed(self, targets: Targets) -> Targets:
        """Those whose masks are renewed; the others keep theirs."""
        return targets

    def enforce(self, binding: Binding, targets: Sequence[Target]) -> None:
        """Apply the masks that there are, whether or not they are renewed any more."""
        _apply_masks(targets)


class KeepZeros(Pruning):
    """w ← mask ⊙ w with the mask of what was not zero when the run began, or the plugin was attached: goes on training
    a sparse model as sparse as it is.

    >>> KeepZeros()(torch.tensor([[3.0, 0.0]]))
    tensor([[3., 0.]])
    """

    sharding: ClassVar[Sharding] = "joint"
    remembers_start: ClassVar[bool] = True

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {"mask": weight != 0}

    def project(self, weight: Tensor, site: Site) -> Tensor:
        return masked(weight, site)

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        for weight, site in zip(weights, sites, strict=True):
            if not site.state:  # asked outside a training
                self._ask(self.project, weight, site=site, remember=True)
        mask_(weights, [site.state["mask"] for site in sites])

    def prune(self, binding: Binding, targets: Targets) -> None:
        """Masks are never others, so that nothing grows."""
        self._prepare(targets)
        self.project_all_(targets.tensors, targets.sites)


def masked(weight: Tensor, site: Site) -> Tensor:
    """The weight with zeros where it is pruned, whatever it held there, an infinity included."""
    return weight.masked_fill(~site.state["mask"], 0)


def count_kept(size: int, sparsity: float) -> int:
    """How many of ``size`` weights are left: all but ⌊sparsity · size⌋.

    >>> count_kept(10, 0.35)
    7
    """
    return size - math.floor(sparsity * size + 1e-9)


@torch.no_grad()
def _apply_masks(targets: Sequence[Target]) -> None:
    chosen = [target for target in targets if target.site.state]
    mask_([target.tensor for target in chosen], [target.own(target.site.state["mask"]) for target in chosen])


def mask_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Put 0 wherever a mask is false, whatever stood there, in place."""
    for place in in_one_pass("masked_", weights, masks):
        keep_(weights[place], masks[place])


def mask_smallest_(weights: Sequence[Tensor], masks: Sequence[Tensor], count: int) -> bool:
    """Of what the masks keep, keep the ``count`` largest magnitudes of all weights together, by samples and passes, in
    place: whether that was done, as :func:`~weightsmith.ranking.keep_largest_` says. Not followed by autograd."""
    passes_over = compiled_function("passes_over", weights)
    passes = (passes_over and passes_over(weights, masks)) or in_blocks(weights, masks)
    return passes is not None and keep_largest_(passes, count)


def _begins(binding: Binding) -> bool:
    """Whether masks are to be made now that a run starts: not if it goes on with those that there are."""
    goes_on = any(binding.trainer.state.updates.values()) and any(site.state for _, site in binding.targets())
    return not binding.plugin.after and not goes_on
