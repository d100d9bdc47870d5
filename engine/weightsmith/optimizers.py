"""What an optimizer holds and remembers of a parameter: looked at, cleaned, and changed while it goes on."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from types import CodeType

import torch
from torch import Tensor, nn
from torch._C._autograd import _profiler_enabled
from torch.autograd import profiler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from weightsmith.shards import own_part

__all__ = ["forget", "held_by", "join", "leave", "momenta", "step"]


def held_by(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of an optimizer, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def step(optimizer: Optimizer) -> None:
    """As ``optimizer.step()``, without torch's record of it where no profiler runs: of a tiny network it takes a tenth
    of an iteration."""
    plain = _unrecorded(optimizer)
    if plain is None:
        optimizer.step()
        return
    if "step" in vars(optimizer):
        optimizer._opt_called = True  # type: ignore[attr-defined]  # as what a scheduler puts there does
    plain(optimizer)


def _unrecorded(optimizer: Optimizer) -> Callable[[Optimizer], object] | None:
    """The step that torch's record is around; ``None`` where anybody learns of a step: a profiler, a hook, or who put a
    function of their own around it. A scheduler of torch's asks no more than whether there was one."""
    recording, noting = _code_around_steps()
    recorded, own = type(optimizer).step, vars(optimizer).get("step")
    is_recorded = getattr(recorded, "__code__", None) is recording
    is_own = own is not None and not (getattr(own, "__code__", None) is noting and own.__wrapped__ is recorded)
    if is_own or not is_recorded:  # one around another optimizer may have nothing of what follows
        return None
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    global_hooks = _global_optimizer_pre_hooks or _global_optimizer_post_hooks
    is_profiled = profiler._is_profiler_enabled or _profiler_enabled()  # by any thread; by older ways
    return None if hooks or global_hooks or is_profiled else recorded.__wrapped__  # type: ignore[attr-defined]


@functools.cache
def _code_around_steps() -> tuple[object, object]:
    """Of what torch puts around the step of every class of optimizers, a record for profilers and calls of hooks; and
    of what its schedulers put around that of an optimizer, to note that there was a step."""
    optimizer = torch.optim.SGD([torch.zeros((), device="cpu")], lr=0.0)
    LambdaLR(optimizer, lambda _: 1.0)
    return _code_of(Optimizer.profile_hook_step(lambda: None), Optimizer), _code_of(optimizer.step, LambdaLR)


def _code_of(function: object, neighbour: type) -> object:
    """A function's code if it was written in the module of a class, and not put in its place by another library; else
    what no function has."""
    code = getattr(function, "__code__", None)
    written_in = code.co_filename if isinstance(code, CodeType) else None
    return code if written_in == sys.modules[neighbour.__module__].__file__ else object()


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
