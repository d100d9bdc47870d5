"""Evaluation as an Ignite engine beside the trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from torch import nn

from weightsmith.errors import ConfigurationError

if TYPE_CHECKING:
    from weightsmith.trainer import Trainer

__all__ = ["EvaluationStep", "evaluating", "evaluator", "pair"]

EvaluationStep: TypeAlias = "Callable[[Trainer, Any], Any]"


def evaluator(trainer: Trainer, metrics: Mapping[str, Metric], step: EvaluationStep | None = None) -> Engine:
    """An engine that evaluates the trainer's models, with the metrics attached."""
    chosen = predict if step is None else step

    def process(_: Engine, batch: Any) -> Any:
        with evaluating(trainer.models), torch.no_grad(), trainer._autocast():
            trainer._forget_casts()  # inside a step: of other weights perhaps, as a handler may have changed them
            try:
                return chosen(trainer, batch)
            finally:
                trainer._forget_casts()  # made here, they have no graph to train by

    for name, metric in metrics.items():
        if not isinstance(metric, Metric):
            raise ConfigurationError(f"the metric {name!r} is {metric!r}: give an Ignite metric, such as Accuracy()")
    engine = Engine(process)
    for name, metric in metrics.items():
        metric.attach(engine, name)
    return engine


def predict(trainer: Trainer, batch: Any) -> Any:
    """The default step: ``(model(inputs), targets)`` for a batch ``(inputs, targets)``."""
    inputs, targets = trainer.to_device(pair(batch))
    return trainer.model(inputs), targets


def pair(batch: Any) -> tuple[Any, Any]:
    """``(inputs, targets)``, or an error that says that another step is needed."""
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise ConfigurationError(
            f"the default step takes batches (inputs, targets), not a {type(batch).__name__}: give another, step=…"
        )
    inputs, targets = batch
    return inputs, targets


@contextlib.contextmanager
def evaluating(models: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put all modules in evaluation mode, and back into each one's own mode."""
    training = [module for model in models.values() for module in model.modules() if module.training]
    for model in models.values():
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
