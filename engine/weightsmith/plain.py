"""A model's state under the names of a plain model, whatever its weights are parametrized by: out and back in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.distributed import first_does, is_first
from weightsmith.errors import ConfigurationError
from weightsmith.files import write_tensors
from weightsmith.shards import gather, put_back
from weightsmith.weights import Weight, inventory, persistent_buffers

__all__ = ["load_plain_state_dict", "plain_entries", "plain_state_dict", "write_plain"]


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that the model would have if nothing in it were parametrized: each weight as its layer computes
    with it, under its own name. A plain model of the same architecture loads it and computes the same.

    >>> layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
    >>> list(layer.state_dict())
    ['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1']
    >>> list(plain_state_dict(layer))
    ['bias', 'weight']
    """
    return dict(plain_entries(model))


@torch.no_grad()
def plain_entries(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """As :func:`plain_state_dict`, one after another. A sharded weight is gathered when its turn comes, so that a
    process that keeps none holds one whole weight at a time; every process must go through all."""
    for weight in inventory({"": model}, {}):
        value = gather(weight.effective().detach())
        for name in weight.names:
            yield name, value
    yield from persistent_buffers({"": model}).items()


def write_plain(path: str | Path, models: Mapping[str, nn.Module]) -> list[str]:
    """Write what :func:`plain_state_dict` gives of models, as safetensors; of several processes the first does.

    Returns:
        The names that were written.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    tensors: dict[str, Any] = {}
    for model_name, model in models.items():
        for key, value in plain_entries(model):
            name = f"{model_name}.{key}" if model_name else key
            tensors[name] = value.detach().cpu() if is_first() else None
    first_does(lambda: write_tensors(path, tensors))
    return list(tensors)


@torch.no_grad()
def load_plain_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what :func:`plain_state_dict` gave, or a plain model's state dict, into a model whose weights may be
    parametrized: each value goes through the right inverses. Nothing is written unless everything fits.

    Raises:
        ConfigurationError: names or shapes do not fit, or a parametrization has no right inverse or cannot give the
            value (a weight outside its set); the model is then as it was.
    """
    weights = {name: weight for weight in inventory({"": model}, {}) for name in weight.names}
    buffers = persistent_buffers({"": model})
    _refuse_misfits({**{n: w.effective() for n, w in weights.items()}, **buffers}, state)
    for name, weight in weights.items():
        if weight.parametrized and not all(hasattr(part, "right_inverse") for part in weight.parametrizations):
            raise ConfigurationError(f"weight {name!r} is parametrized by something without a right_inverse")
    before = [(tensor, tensor.clone()) for weight in weights.values() for tensor in weight.raw]
    try:
        for name, weight in weights.items():
            _assign(name, weight, state[name])
    except Exception:
        for tensor, value in before:
            tensor.copy_(value)
        raise
    for name, buffer in buffers.items():
        buffer.copy_(state[name])


def _assign(name: str, weight: Weight, value: Tensor) -> None:
    if not weight.parametrized:
        put_back(weight.parameter, value)
        return
    setattr(weight.module, weight.leaf, value.to(weight.raw[0]))
    difference = weight.misfit(value)
    if difference:
        raise ConfigurationError(f"the parametrization of weight {name!r} cannot give the value: {difference}")


def _refuse_misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise ConfigurationError(
            f"the state does not fit the model: it lacks {missing or 'nothing'} and has {unknown or 'nothing'} besides"
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise ConfigurationError(f"{name!r} is {tuple(state[name].shape)} in the state, {tuple(tensor.shape)} here")
