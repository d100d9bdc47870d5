"""How sparse a model is, and zeros made permanent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from weightsmith import ConfigurationError, Trainer, matrices
from weightsmith.selection import select
from weightsmith.shards import gather
from weightsmith.weights import inventory

from weightsmith_plugins.sparsity.masks import KeepZeros, Pruning

__all__ = ["SparsityReport", "finalise", "sparsity_report"]


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


@torch.no_grad()
def sparsity_report(trainer: Trainer) -> SparsityReport:
    """How sparse each weight with two axes or more is, in a trainer's models: as its layer computes with it."""
    _require_trainer("sparsity_report", trainer)
    weights = select(matrices, inventory(trainer.models, trainer.optimizers))
    zeros, sizes = {}, {}
    for weight in weights:
        value = gather(weight.effective())
        zeros[weight.name], sizes[weight.name] = int((value == 0).sum()), value.numel()
    return SparsityReport(zeros, sizes)


def finalise(trainer: Trainer) -> SparsityReport:
    """Make the masks permanent: every pruning is replaced by :class:`KeepZeros` on the same weights, so that training
    can go on without another weight pruned or grown. A weight that a mask keeps, but that is exactly zero, stays zero.

    Raises:
        ConfigurationError: no pruning is attached.
    """
    _require_trainer("finalise", trainer)
    prunings = [plugin for plugin in trainer.plugins if isinstance(plugin, Pruning)]
    if not prunings:
        raise ConfigurationError("finalise: no pruning is attached")
    for plugin in prunings:
        trainer.detach(plugin)
        trainer.attach(KeepZeros(where=plugin.where))
    return sparsity_report(trainer)


def _require_trainer(function: str, given: object) -> None:
    if not isinstance(given, Trainer):
        raise ConfigurationError(f"{function} takes the Trainer, not a {type(given).__name__}")
