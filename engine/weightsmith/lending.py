"""The means of an average in the weights' place, for a while."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from weightsmith.binding import Binding
from weightsmith.distributed import mean_over_processes
from weightsmith.errors import ConfigurationError
from weightsmith.faults import blaming
from weightsmith.shards import reshard
from weightsmith.targets import Target, gathered

if TYPE_CHECKING:
    from weightsmith.trainer import Trainer

__all__ = ["lendable", "lending", "renew_statistics"]

logger = logging.getLogger(__name__)


def lendable(average: Binding) -> list[Target]:
    """The weights of which an average has a mean to lend: of all optimizers, but of none that is frozen now."""
    return [t for t in average.all_targets() if "mean" in t.site.state and t.weight.trainable]


@contextlib.contextmanager
def lending(trainer: Trainer, average: Binding, constraints: Iterable[Binding]) -> Iterator[None]:
    """Put an average's means in the weights' place, let the constraints have the last word on them, and put everything
    back: these weights, and all buffers.

    Raises:
        ConfigurationError: the average has not seen a weight yet.
    """
    targets = lendable(average)
    if not targets:
        first = average.weights[0].name
        raise ConfigurationError(f"{average.plugin!r} has no mean of {first!r} yet, or of another weight: run first")
    weights = [(target.tensor, target.tensor.detach().clone()) for target in targets]
    with _keeping_buffers(trainer):
        try:
            for target in targets:
                _lend(target)
            for constraint in constraints:
                _enforce(constraint, targets)
            _forget_copies(trainer)
            yield
        finally:
            with torch.no_grad():
                for tensor, value in weights:
                    tensor.copy_(value)
            _forget_copies(trainer)


@torch.no_grad()
def _lend(target: Target) -> None:
    """Put the mean in a weight's place. Of a sharded weight it is a part, or whole, as the plugin acts."""
    if target.site._is_scattered:
        with gathered(target, ("weight",)) as whole:
            whole.tensor.copy_(target.site.state["mean"])
    else:
        target.tensor.copy_(target.site.state["mean"])


def _forget_copies(trainer: Trainer) -> None:
    """Of the weights as they were: those of autocast, and the whole ones that a forward pass made of sharded ones."""
    trainer._forget_casts()
    reshard(trainer.models.values())


def _enforce(constraint: Binding, lent: list[Target]) -> None:
    if constraint.layers.weights():  # the layer computes with a point of the set already
        return
    raw = {id(target.weight.parameter) for target in lent}
    targets = [t for t in constraint.all_targets() if id(t.weight.raw[0]) in raw and t.weight.raw[0].numel()]
    if targets:
        with blaming(constraint.plugin, "on the means that an average lends"):
            constraint.current().enforce(constraint, targets)


def renew_statistics(trainer: Trainer, data: Iterable[Any]) -> None:
    """Compute the running statistics of a model's batch norms anew, as the mean over the batches of all processes; of
    those in training mode, for the others were frozen. Every module stays in its own mode.

    Raises:
        ConfigurationError: ``data`` has no batch, or there are several models.
    """
    model = trainer.model
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]
    if not norms:
        logger.warning("statistics_from: no batch norm in training mode keeps statistics, so none are renewed")
        return
    momenta = [norm.momentum for norm in norms]
    batches = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for a mean in which all batches count alike
        for batch in data:
            inputs = batch[0] if isinstance(batch, (list, tuple)) else batch
            with torch.no_grad(), trainer._autocast():
                model(trainer.to_device(inputs))
            batches += 1
        for statistics in (each for norm in norms for each in (norm.running_mean, norm.running_var)):
            if statistics is not None:
                statistics.copy_(mean_over_processes(statistics))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if not batches:
        raise ConfigurationError(
            "statistics_from gave no batch: a generator can be gone through once only, so give a list or a DataLoader"
        )


@contextlib.contextmanager
def _keeping_buffers(trainer: Trainer) -> Iterator[None]:
    """Put every buffer back afterwards, whether it was written to or replaced."""
    kept = [
        (module, name, buffer, buffer.clone())
        for model in trainer.models.values()
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in kept:
                module._buffers[name] = buffer.copy_(value)
