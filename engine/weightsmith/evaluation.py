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
from weightsmith.measurements import Measurement
from weightsmith.shards import reshard

if TYPE_CHECKING:
    from weightsmith.trainer import Trainer

__all__ = ["EvaluationStep", "evaluating", "evaluator", "pair", "scalars"]

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

    if not isinstance(metrics, Mapping):
        raise ConfigurationError(f"metrics takes name to metric, such as {{'accuracy': Accuracy()}}, not {metrics!r}")
    for name, metric in metrics.items():
        if not isinstance(metric, Metric):
            raise ConfigurationError(f"the metric {name!r} is {metric!r}: give an Ignite metric, such as Accuracy()")
    engine = Engine(process)
    for name, metric in metrics.items():
        metric.attach(engine, name)
    return engine


def predict(trainer: Trainer, batch: Any) -> Any:
    """The default step: ``(model(inputs), targets)`` for a batch ``(inputs, targets)``."""
    inputs, targets = trainer.to_device(pair(batch, "evaluation: give evaluate() or validate_on()"))
    return trainer.model(inputs), targets


def pair(batch: Any, where: str) -> tuple[Any, Any]:
    """``(inputs, targets)``, or an error that says where another step is needed."""
    is_sequence = isinstance(batch, (tuple, list))
    if not (is_sequence and len(batch) == 2):
        got = f"a {type(batch).__name__}{f' of {len(batch)}' if is_sequence else ''}"
        raise ConfigurationError(f"the default step takes batches (inputs, targets), not {got}, in {where} step=…")
    inputs, targets = batch
    return inputs, targets


def scalars(metrics: Mapping[str, Any]) -> dict[str, Measurement]:
    """Those metrics that are numbers, by the tags under which they are published."""
    numbers = {
        n: value for n, value in metrics.items() if hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0
    }
    return {f"metrics/{name}": float(value) for name, value in numbers.items()}


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
        reshard(models.values())  # which keep whole weights after a forward pass, of now
