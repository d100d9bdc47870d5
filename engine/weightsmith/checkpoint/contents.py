"""What a run consists of, taken together."""

from __future__ import annotations

import functools
import json
import logging
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

import ignite
from torch import Tensor, nn

from weightsmith.checkpoint.code import code_of
from weightsmith.checkpoint.folder import Contents
from weightsmith.checkpoint.parts import is_storable
from weightsmith.errors import ConfigurationError
from weightsmith.finiteness import parameters_of
from weightsmith.optimizers import held_by
from weightsmith.plugin import Plugin
from weightsmith.replicas import inside
from weightsmith.shards import is_sharded, reshard
from weightsmith.values import to_values

if TYPE_CHECKING:
    from weightsmith.trainer.run import DurableRun

__all__ = [
    "beside",
    "class_of",
    "collect",
    "described",
    "facts_of",
    "joined",
    "model_entries",
    "models_of",
    "modules_of",
    "settings_of",
]

logger = logging.getLogger(__name__)


def collect(trainer: DurableRun, *, in_order: bool, all_gradients: bool = False, alone: bool = False) -> Contents:
    """The whole run as it is now. Of sharded weights it is the part that this process has.

    Args:
        trainer: whose run.
        all_gradients: whether to keep gradients that nobody looks at any more before they are forgotten.
        in_order: whether it is at a safe point; a run that crashed has no window worth keeping.
        alone: whether other processes do not collect now: then what is kept besides, which may ask them, is left out.

    Raises:
        ConfigurationError: something in it could only be saved by pickle; the message says what.
    """
    models = models_of(trainer)
    reshard(models.values())
    tensors = dict(model_entries(models))
    weights = {name: value for name, value in tensors.items() if is_storable(value)}
    position = trainer.position()
    is_in_epoch = position["iterations_in_epoch"] is not None
    state = {
        "trainer": trainer.own_state(),
        "position": position,
        "models": {name: value for name, value in tensors.items() if name not in weights},
        "metadata": {name: _metadata(model) for name, model in models.items()},
        "beside": beside(trainer),
        "buffers": dict(_unsaved_buffers(models)),
        "frozen": [name for name, weight in parameters_of(trainer.models).items() if not weight.requires_grad],
        "evaluating": [name for name, module in modules_of(models) if not module.training],
        "optimizers": {name: optimizer.state_dict() for name, optimizer in trainer.optimizers.items()},
        "windows": {window.name: window.state_dict() for window in trainer._windows} if in_order else {},
        "gradients": _gradients(trainer) if in_order and (is_in_epoch or all_gradients) else {},
        "keep": {} if alone else {name: part.state_dict() for name, part in trainer.keep.items()},
        "metrics": dict(_plain_metrics(trainer.state.metrics)),
    }
    plain = {part: to_values(value, part) for part, value in state.items()}
    return Contents({name: _copied(weight) for name, weight in weights.items()}, plain, facts_of(trainer))


def models_of(trainer: DurableRun) -> dict[str, nn.Module]:
    """The models under whose names all is saved: without what makes copies of them work together."""
    return {name: inside(model) for name, model in trainer.models.items()}


def _copied(weight: Tensor) -> Tensor:
    held = weight.detach()
    return held.clone() if is_sharded(held) else held.cpu().contiguous().clone()


def facts_of(trainer: DurableRun) -> dict[str, Any]:
    """What a checkpoint tells of itself without being read."""
    packages = ("weightsmith", "torch", "pytorch-ignite", "numpy", "numba")
    return {
        "iteration": trainer.state.iteration,
        "epoch": trainer.state.epoch,
        "updates": dict(trainer.state.updates),
        "saved_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "settings": settings_of(trainer),
        "plugins": {label: described(plugin) for label, plugin in trainer._attachments.labels.items()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
    }


def settings_of(trainer: DurableRun) -> dict[str, Any]:
    return {
        "seed": trainer.seed,
        "accumulate": trainer.accumulate,
        "precision": trainer.precision,
        "optimizers": {name: class_of(optimizer) for name, optimizer in trainer.optimizers.items()},
        "keep": {name: class_of(part) for name, part in trainer.keep.items()},
    }


def described(plugin: Plugin) -> dict[str, str]:
    try:
        configuration = json.dumps(plugin.to_plain(), sort_keys=True)
    except ConfigurationError:  # its class is defined inside a function
        configuration = repr(plugin)
    return {"configuration": configuration, "code": code_of(plugin)}


@functools.cache
def _version(package: str) -> str:
    if package == "pytorch-ignite":
        return str(ignite.__version__)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def class_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def model_entries(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, Any]]:
    for name, model in models.items():
        for key, value in model.state_dict().items():
            yield joined(name, key), value


def _unsaved_buffers(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """The buffers that no state dict has."""
    for name, module in modules_of(models):
        for key in module._non_persistent_buffers_set:
            value = module._buffers.get(key)
            if value is not None:
                yield joined(name, key), value


def modules_of(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for name, model in models.items():
        for path, module in model.named_modules():
            yield joined(name, path) if path else name, module


def _gradients(trainer: DurableRun) -> dict[str, Tensor]:
    return {name: w.grad for name, w in parameters_of(trainer.models).items() if w.grad is not None}


def _metadata(model: nn.Module) -> dict[str, Any]:
    """The versions of the modules' forms, which torch hands to them on loading."""
    state: Any = model.state_dict()
    return {name: dict(facts) for name, facts in state._metadata.items()}


def beside(trainer: DurableRun) -> dict[str, dict[int, Tensor]]:
    """What optimizers train that is in no model, by its place in the optimizer."""
    inside = {id(weight) for weight in parameters_of(trainer.models).values()}
    return {
        name: {place: held for place, held in enumerate(held_by(optimizer)) if id(held) not in inside}
        for name, optimizer in trainer.optimizers.items()
    }


def joined(first: str, second: str) -> str:
    return f"{first}.{second}" if first else second


def _plain_metrics(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        try:
            yield name, to_values(value, name)
        except ConfigurationError:
            logger.debug("the metric %r is no plain value, and not saved", name)
