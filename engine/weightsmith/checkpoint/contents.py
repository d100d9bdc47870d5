"""What a run consists of: taken together, compared with another, and put back, all of it or nothing."""

from __future__ import annotations

import collections
import copy
import functools
import json
import logging
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

import ignite
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weightsmith.checkpoint.code import code_of
from weightsmith.checkpoint.folder import Contents
from weightsmith.errors import ConfigurationError
from weightsmith.finiteness import parameters_of
from weightsmith.optimizers import held_by
from weightsmith.plugin import Plugin
from weightsmith.values import from_values, to_values

if TYPE_CHECKING:
    from weightsmith.trainer.run import DurableRun

__all__ = ["collect", "refuse_misfits", "restore"]

logger = logging.getLogger(__name__)


# -------------------------------------------------------------------- taking


def collect(trainer: DurableRun, *, in_order: bool, all_gradients: bool = False) -> Contents:
    """The whole run as it is now.

    Args:
        trainer: whose run.
        all_gradients: whether to keep gradients that nobody looks at any more before they are forgotten.
        in_order: whether it is at a safe point; a run that crashed has no window worth keeping.

    Raises:
        ConfigurationError: something in it could only be saved by pickle; the message says what.
    """
    tensors = dict(_model_entries(trainer.models))
    weights = {name: value for name, value in tensors.items() if _is_storable(value)}
    position = trainer.position()
    is_in_epoch = position["iterations_in_epoch"] is not None
    state = {
        "trainer": trainer.own_state(),
        "position": position,
        "models": {name: value for name, value in tensors.items() if name not in weights},
        "metadata": {name: _metadata(model) for name, model in trainer.models.items()},
        "beside": _beside(trainer),
        "buffers": dict(_unsaved_buffers(trainer.models)),
        "frozen": [name for name, weight in parameters_of(trainer.models).items() if not weight.requires_grad],
        "evaluating": [name for name, module in _modules(trainer.models) if not module.training],
        "optimizers": {name: optimizer.state_dict() for name, optimizer in trainer.optimizers.items()},
        "windows": {window.name: window.state_dict() for window in trainer._windows} if in_order else {},
        "gradients": _gradients(trainer) if in_order and (is_in_epoch or all_gradients) else {},
        "keep": {name: part.state_dict() for name, part in trainer.keep.items()},
        "metrics": dict(_plain_metrics(trainer.state.metrics)),
    }
    plain = {part: to_values(value, part) for part, value in state.items()}
    return Contents(
        {name: t.detach().cpu().contiguous().clone() for name, t in weights.items()}, plain, _facts(trainer)
    )


def _facts(trainer: DurableRun) -> dict[str, Any]:
    """What a checkpoint tells of itself without being read."""
    packages = ("weightsmith", "torch", "pytorch-ignite", "numpy")
    return {
        "iteration": trainer.state.iteration,
        "epoch": trainer.state.epoch,
        "updates": dict(trainer.state.updates),
        "saved_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "settings": _settings(trainer),
        "plugins": {label: _described(plugin) for label, plugin in trainer._attachments.labels.items()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
    }


def _settings(trainer: DurableRun) -> dict[str, Any]:
    return {
        "seed": trainer.seed,
        "accumulate": trainer.accumulate,
        "precision": trainer.precision,
        "optimizers": {name: _class_of(optimizer) for name, optimizer in trainer.optimizers.items()},
        "keep": {name: _class_of(part) for name, part in trainer.keep.items()},
    }


def _described(plugin: Plugin) -> dict[str, str]:
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


def _class_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _model_entries(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, Any]]:
    for name, model in models.items():
        for key, value in model.state_dict().items():
            yield _joined(name, key), value


def _unsaved_buffers(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """The buffers that no state dict has."""
    for name, module in _modules(models):
        for key in module._non_persistent_buffers_set:
            value = module._buffers.get(key)
            if value is not None:
                yield _joined(name, key), value


def _modules(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for name, model in models.items():
        for path, module in model.named_modules():
            yield _joined(name, path) if path else name, module


def _gradients(trainer: DurableRun) -> dict[str, Tensor]:
    return {name: w.grad for name, w in parameters_of(trainer.models).items() if w.grad is not None}


def _metadata(model: nn.Module) -> dict[str, Any]:
    """The versions of the modules' forms, which torch hands to them on loading."""
    state: Any = model.state_dict()
    return {name: dict(facts) for name, facts in state._metadata.items()}


def _beside(trainer: DurableRun) -> dict[str, dict[int, Tensor]]:
    """What optimizers train that is in no model, by its place in the optimizer."""
    inside = {id(weight) for weight in parameters_of(trainer.models).values()}
    return {
        name: {place: held for place, held in enumerate(held_by(optimizer)) if id(held) not in inside}
        for name, optimizer in trainer.optimizers.items()
    }


def _joined(first: str, second: str) -> str:
    return f"{first}.{second}" if first else second


def _apart(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors in main memory, copied where they share it, as tied weights do, which safetensors refuses."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        place = held.untyped_storage().data_ptr()
        yield name, held.clone() if place in seen else held
        seen.add(place)


def _is_storable(value: Any) -> bool:
    """Whether safetensors can hold it."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
        return False
    return value.dtype not in (torch.complex128, torch.complex32)


def _plain_metrics(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        try:
            yield name, to_values(value, name)
        except ConfigurationError:
            logger.debug("the metric %r is no plain value, and not saved", name)


# -------------------------------------------------------------------- comparing


def refuse_misfits(trainer: DurableRun, contents: Contents, *, allow_changes: bool) -> bool:
    """See that a saved run fits this one.

    Args:
        trainer: this one.
        contents: the saved one.
        allow_changes: whether settings and plugins may be others; then they are logged.

    Returns:
        Whether any are.

    Raises:
        ConfigurationError: it does not fit; the message lists everything that is unknown, missing or another.
    """
    never = [*_other_entries(trainer, contents), *_other_optimizers(trainer, contents)]
    changes = [*_other_settings(trainer, contents.manifest), *_other_plugins(trainer, contents)]
    if never or (changes and not allow_changes):
        mend = "where that is meant, resume with allow_changes=True"
        if never:
            mend = "make the trainer as the saved one was; Pretrained loads weights alone, into other shapes as well"
        raise ConfigurationError("\n- ".join(["the checkpoint is of another run:", *never, *changes]) + f"\n{mend}")
    for change in changes:
        logger.warning("resumed with a change: %s", change)
    now, then = _facts(trainer)["versions"], contents.manifest["versions"]
    others = [f"{name} {then.get(name)}, here {version}" for name, version in now.items() if then.get(name) != version]
    if others:
        logger.warning(
            "the checkpoint was saved with other versions (%s): the run goes on, but perhaps not bit for bit",
            "; ".join(others),
        )
    return bool(changes)


def _other_entries(trainer: DurableRun, contents: Contents) -> Iterator[str]:
    here, there = dict(_model_entries(trainer.models)), {**contents.weights, **contents.state["models"]}
    for name in there.keys() - here.keys():
        yield f"{name!r} is in the checkpoint, and not in the model"
    for name in sorted(here.keys() - there.keys()):
        yield f"{name!r} is in the model, and not in the checkpoint"
    for name in [name for name in here if name in there]:
        one, other = here[name], there[name]
        if isinstance(one, Tensor) and isinstance(other, Tensor) and _kind(one) != _kind(other):
            yield f"{name!r} is {_kind(other)} in the checkpoint, {_kind(one)} here"


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _other_optimizers(trainer: DurableRun, contents: Contents) -> Iterator[str]:
    saved = contents.state["optimizers"]
    if saved.keys() != trainer.optimizers.keys():
        yield f"its optimizers are {', '.join(map(repr, saved))}, here {', '.join(map(repr, trainer.optimizers))}"
        return
    for name, optimizer in trainer.optimizers.items():
        here = [len(group["params"]) for group in optimizer.param_groups]
        there = [len(group["params"]) for group in saved[name]["param_groups"]]
        if here != there:
            yield f"the optimizer {name!r} has groups of {there} parameters in the checkpoint, of {here} here"
        one, other = _class_of(optimizer), contents.manifest["settings"]["optimizers"].get(name)
        if one != other:
            yield f"the optimizer {name!r} is {other} in the checkpoint, {one} here"


def _other_settings(trainer: DurableRun, manifest: Mapping[str, Any]) -> Iterator[str]:
    here, there = _settings(trainer), manifest["settings"]
    for name in ("accumulate", "precision", "keep", "seed"):
        if here[name] != there[name] and (name != "seed" or trainer.has_own_seed):
            yield f"{name} is {there[name]!r} in the checkpoint, {here[name]!r} here"


def _other_plugins(trainer: DurableRun, contents: Contents) -> Iterator[str]:
    is_same_python = contents.manifest["versions"]["python"].split(".")[:2] == platform.python_version().split(".")[:2]
    here = {label: _described(plugin) for label, plugin in trainer._attachments.labels.items()}
    there = contents.manifest["plugins"]
    for label in [label for label in there if label not in here]:
        yield f"the plugin {label} is not attached, which was {there[label]['configuration']}"
    for label in [label for label in here if label not in there]:
        yield f"the plugin {label} is attached, {here[label]['configuration']}, and was not"
    for label in [label for label in here if label in there]:
        one, other = here[label], there[label]
        if one["configuration"] != other["configuration"]:
            yield f"the plugin {label} was {other['configuration']}, and is {one['configuration']}"
        elif one["code"] != other["code"] and is_same_python:  # others parse a class into another tree
            yield f"the plugin {label} has other code than it had"
    if list(here) != list(there) and here.keys() == there.keys():
        yield f"the plugins are in another order: {', '.join(here)}, where it was {', '.join(there)}"


# -------------------------------------------------------------------- putting back


def restore(trainer: DurableRun, contents: Contents, *, allow_changes: bool = False) -> None:
    """Put a saved run back; if anything fails, this one is as it was.

    Raises:
        ConfigurationError: as :func:`refuse_misfits`, or something cannot be loaded.
    """
    try:
        has_changed = refuse_misfits(trainer, contents, allow_changes=allow_changes)
        if allow_changes:
            contents = _fitting(trainer, contents, has_changed=has_changed)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"this is no checkpoint of a run: {type(error).__name__} {error}") from error
    before, position = collect(trainer, in_order=True, all_gradients=True), trainer._position
    before = Contents(copy.deepcopy(before.weights), copy.deepcopy(before.state), before.manifest)
    try:
        _load(trainer, contents)
    except Exception as error:
        _load(trainer, before)
        trainer._position = position
        raise ConfigurationError(f"the checkpoint cannot be loaded, and nothing was: {error}") from error


def _fitting(trainer: DurableRun, contents: Contents, *, has_changed: bool) -> Contents:
    """What of a saved run fits one that may be changed; if it is, its constraints act before the first update."""
    own, position = contents.state["trainer"], contents.state["position"]
    own = {**own, "plugins": trainer._attachments.fitting(own["plugins"])}
    state = {**contents.state, "trainer": own, "position": {**position, "has_changed": has_changed}}
    return Contents(contents.weights, state, contents.manifest)


def _load(trainer: DurableRun, contents: Contents) -> None:
    state = contents.state
    _load_models(trainer.models, {**contents.weights, **state["models"]}, state["metadata"])
    with torch.no_grad():
        for name, others in _beside(trainer).items():
            for place, held in others.items():
                held.copy_(state["beside"][name][place])
    _load_modes(trainer.models, state)
    for name, optimizer in trainer.optimizers.items():
        _load_optimizer(optimizer, state["optimizers"][name])
    for window in trainer._windows:
        window.load_state_dict(state["windows"].get(window.name, {}))
    for name, weight in parameters_of(trainer.models).items():
        gradient = state["gradients"].get(name)
        weight.grad = None if gradient is None else gradient.to(weight.device, copy=True)
    for name, part in trainer.keep.items():
        if name in state["keep"]:
            part.load_state_dict(copy.deepcopy(state["keep"][name]))
    trainer.load_own_state(state["trainer"], seed=contents.manifest["settings"]["seed"])
    trainer.state.metrics = from_values(state["metrics"], torch.device("cpu"))
    trainer.go_on_from(state["position"])


def _load_models(models: Mapping[str, nn.Module], entries: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    for name, model in models.items():
        state: Any = collections.OrderedDict((key, entries[_joined(name, key)]) for key in model.state_dict())
        state._metadata = metadata[name]
        model.load_state_dict(state)


@torch.no_grad()
def _load_modes(models: Mapping[str, nn.Module], state: Mapping[str, Any]) -> None:
    evaluating, frozen, buffers = set(state["evaluating"]), set(state["frozen"]), state["buffers"]
    for name, module in _modules(models):
        module.training = name not in evaluating
        for key in module._non_persistent_buffers_set:
            saved, held = buffers.get(_joined(name, key)), module._buffers.get(key)
            if saved is None:
                continue
            if held is None:
                module._buffers[key] = saved.clone()
            elif held.shape == saved.shape and held.dtype == saved.dtype:
                held.copy_(saved)
            else:
                module._buffers[key] = saved.to(held.device, copy=True)
    for name, weight in parameters_of(models).items():
        if weight.requires_grad == (name in frozen):
            weight.requires_grad_(name not in frozen)


def _load_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    optimizer.load_state_dict(copy.copy(dict(saved)))
    for place, weight in enumerate(held_by(optimizer)):  # which torch casts to the weight's dtype
        for key, value in saved["state"].get(place, {}).items():
            held = optimizer.state[weight][key]
            if isinstance(value, Tensor) and held.dtype != value.dtype:
                optimizer.state[weight][key] = value.to(held.device, copy=True)
