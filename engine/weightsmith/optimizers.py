"""What an optimizer holds and remembers of a parameter: looked at, cleaned, and changed while it goes on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weightsmith.shards import own_part

__all__ = ["forget", "held_by", "join", "leave", "momenta"]


def held_by(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of an optimizer, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def join(optimizer: Optimizer, group: int, parameters: Iterable[nn.Parameter]) -> None:
    """Add parameters to one of an optimizer's groups, with a clean state. (A group of their own would be unknown to the
    learning rate's scheduler.)"""
    for parameter in parameters:
        optimizer.param_groups[group]["params"].append(parameter)
        _begin(optimizer, group, parameter)
    _forget_shared_memory(optimizer)


def leave(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Take parameters, and what is remembered of them, out of an optimizer."""
    gone = set(map(id, parameters))
    for group in optimizer.param_groups:
        for parameter in [p for p in group["params"] if id(p) in gone]:
            optimizer.state.pop(parameter, None)
        group["params"][:] = [parameter for parameter in group["params"] if id(parameter) not in gone]
    _forget_shared_memory(optimizer)


def forget(optimizer: Optimizer, parameter: nn.Parameter, where: Tensor | None = None) -> None:
    """Clean what an optimizer remembers of a parameter, such as momentum: all of it, or the elements in ``where``, a
    boolean of its shape; of a sharded one, of its part's. A memory that is not kept element by element (Adafactor's
    factors) goes as a whole."""
    state = optimizer.state.get(parameter, {})
    moments = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.ndim}
    is_elementwise = all(value.shape == parameter.shape for value in moments.values())
    if where is None or isinstance(optimizer, torch.optim.LBFGS) or (moments and not is_elementwise):
        optimizer.state.pop(parameter, None)
        for place, group in enumerate(optimizer.param_groups):
            if any(held is parameter for held in group["params"]):
                _begin(optimizer, place, parameter)
        _forget_shared_memory(optimizer)
        return
    for name, value in moments.items():
        if name in _MOMENTS:
            own_part(value).masked_fill_(where, 0)


def momenta(optimizer: Optimizer, parameter: nn.Parameter) -> list[Tensor]:
    """The running means of gradients along which an optimizer steps; empty if there is none (yet)."""
    state = optimizer.state.get(parameter, {})
    return [state[name] for name in _MOMENTA if isinstance(state.get(name), Tensor)]


def _begin(optimizer: Optimizer, group: int, parameter: nn.Parameter) -> None:
    """Give a parameter the state that its optimizer gives when it is made; most give it at the first step."""
    if isinstance(optimizer, torch.optim.Adagrad):
        options = {name: value for name, value in optimizer.param_groups[group].items() if name != "params"}
        twin = torch.optim.Adagrad([{**options, "params": [parameter]}], **optimizer.defaults)
        optimizer.state[parameter] = twin.state[parameter]


def _forget_shared_memory(optimizer: Optimizer) -> None:
    """LBFGS has one memory of all its weights together, under the first."""
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.state.clear()
        optimizer._numel_cache = None


_MOMENTA = ("momentum_buffer", "exp_avg")
"""What torch's optimizers call the running mean of gradients along which they step."""

_MOMENTS = frozenset(
    {
        *_MOMENTA,
        *("exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "grad_avg", "acc_delta", "sum", "prev", "variance"),
    }
)
"""What torch's optimizers call running means of gradients and of their squares: 0 is where they begin."""
