"""A saved run put back, all of it or nothing."""

from __future__ import annotations

import collections
import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weightsmith.checkpoint.contents import beside, collect, joined, models_of, modules_of
from weightsmith.checkpoint.fitting import fitted
from weightsmith.checkpoint.folder import Contents
from weightsmith.checkpoint.misfits import refuse_misfits
from weightsmith.checkpoint.trees import copied
from weightsmith.distributed import in_common
from weightsmith.errors import ConfigurationError
from weightsmith.finiteness import parameters_of
from weightsmith.optimizers import held_by
from weightsmith.values import from_values

if TYPE_CHECKING:
    from weightsmith.trainer.run import DurableRun

__all__ = ["restore"]


def restore(trainer: DurableRun, contents: Contents, *, allow_changes: bool = False) -> None:
    """Put a saved run back, on all processes or on none; if anything fails, this one is as it was.

    Raises:
        ConfigurationError: as :func:`refuse_misfits`, or something cannot be loaded.
    """
    contents = in_common(lambda: _fitting(trainer, contents, allow_changes=allow_changes))
    before, position = collect(trainer, in_order=True, all_gradients=True), trainer._position
    before = Contents(copied(before.weights), copied(before.state), before.manifest)
    try:
        in_common(lambda: _load(trainer, fitted(trainer, contents)))
    except Exception as error:
        _load(trainer, before)
        trainer._position = position
        raise ConfigurationError(f"the checkpoint cannot be loaded, and nothing was: {error}") from error


def _fitting(trainer: DurableRun, contents: Contents, *, allow_changes: bool) -> Contents:
    """A saved run, once it is seen to fit; of one that may be changed, what does fit."""
    try:
        has_changed = refuse_misfits(trainer, contents, allow_changes=allow_changes)
        return _changed(trainer, contents, has_changed=has_changed) if allow_changes else contents
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"this is no checkpoint of a run: {type(error).__name__} {error}") from error


def _changed(trainer: DurableRun, contents: Contents, *, has_changed: bool) -> Contents:
    """What of a saved run fits one that may be changed; if it is, its constraints act before the first update."""
    own, position = contents.state["trainer"], contents.state["position"]
    own = {**own, "plugins": trainer._attachments.fitting(own["plugins"])}
    state = {**contents.state, "trainer": own, "position": {**position, "has_changed": has_changed}}
    return replace(contents, state=state)


def _load(trainer: DurableRun, contents: Contents) -> None:
    state, models = contents.state, models_of(trainer)
    _load_models(models, {**contents.weights, **state["models"]}, state["metadata"])
    with torch.no_grad():
        for name, others in beside(trainer).items():
            for place, held in others.items():
                held.copy_(state["beside"][name][place])
    _load_modes(models, state)
    for name, optimizer in trainer.optimizers.items():
        _load_optimizer(optimizer, state["optimizers"][name])
    for window in trainer._windows:
        window.load_state_dict(state["windows"].get(window.name, {}))
    for name, weight in parameters_of(trainer.models).items():
        gradient = state["gradients"].get(name)
        weight.grad = None if gradient is None else gradient.to(weight.device, copy=True)
    for name, part in trainer.keep.items():
        if name in state["keep"]:
            part.load_state_dict(copied(state["keep"][name]))
    trainer.load_own_state(state["trainer"], seed=contents.manifest["settings"]["seed"])
    trainer.state.metrics = from_values(state["metrics"], torch.device("cpu"))
    trainer.go_on_from(state["position"])


def _load_models(models: Mapping[str, nn.Module], entries: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    for name, model in models.items():
        state: Any = collections.OrderedDict((key, entries[joined(name, key)]) for key in model.state_dict())
        state._metadata = metadata[name]
        model.load_state_dict(state)


@torch.no_grad()
def _load_modes(models: Mapping[str, nn.Module], state: Mapping[str, Any]) -> None:
    evaluating, frozen, buffers = set(state["evaluating"]), set(state["frozen"]), state["buffers"]
    for name, module in modules_of(models):
        module.training = name not in evaluating
        for key in module._non_persistent_buffers_set:
            saved, held = buffers.get(joined(name, key)), module._buffers.get(key)
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
