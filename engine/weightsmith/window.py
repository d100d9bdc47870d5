"""One optimizer and the gradients that it gathers until its next step."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from weightsmith.distributed import any_process
from weightsmith.errors import ConfigurationError
from weightsmith.optimizers import held_by
from weightsmith.replicas import Replicas
from weightsmith.shards import is_sharded, own_part
from weightsmith.stepping import take_step
from weightsmith.tensors import divide_

__all__ = ["Window", "Windows"]


class Window:
    """An optimizer's accumulation window: micro-batches go in, one gradient comes out.

    Attributes:
        name: the optimizer's name.
        optimizer: the optimizer.
        microbatches: how many micro-batches the open window holds; 0 when none is open.
        scaler: the gradient scaler, for float16.
        evaluates_repeatedly: whether the optimizer calls its closure several times a step, as LBFGS does.
    """

    def __init__(
        self,
        name: str,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler | None,
        *,
        others: Sequence[Tensor],
        replicas: Replicas,
    ) -> None:
        self.name = name
        self.optimizer = optimizer
        self.scaler = scaler
        self.microbatches = 0
        self.evaluates_repeatedly = _needs_closure(optimizer)
        self._others = others
        self._has_sharded_others = any(map(is_sharded, others))
        self._replicas = replicas

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in held_by(self.optimizer) if p.grad is not None]

    def clear(self) -> None:
        """Forget the gradients: the next window opens empty."""
        self.microbatches = 0
        for parameter in held_by(self.optimizer):  # as zero_grad, without the profiler's record of it
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """What is open, but for the gradients, and the scale."""
        return {
            "microbatches": self.microbatches,
            "scaler": None if self.scaler is None else dict(self.scaler.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; empty: nothing is open."""
        self.microbatches = state.get("microbatches", 0)
        if self.scaler is not None and state.get("scaler"):
            self.scaler = torch.amp.GradScaler(self.scaler._device)
            self.scaler.load_state_dict(state["scaler"])

    def abandon(self) -> None:
        """Drop the window: its update raised. The gradients stay to be looked at until the next window opens."""
        self.microbatches = 0
        self._renew_scaler()

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient, to the weights of this optimizer only."""
        if self.microbatches == 0:
            self.clear()
        # A half-precision loss would overflow under the scaler's first scale, 65,536.
        scaled = loss if self.scaler is None else self.scaler.scale(loss.float())
        if not self._others:  # no fence is needed around all trainable weights, which would cost 6 µs a step
            scaled.backward()  # type: ignore[no-untyped-call]
        elif self._has_sharded_others:  # which stand in the graph as other tensors
            with _keeping_gradients(self._others):
                scaled.backward()  # type: ignore[no-untyped-call]
        else:
            torch.autograd.backward(scaled, inputs=self._trained())
        self.microbatches += 1

    def refuse_loss(self, loss: Tensor) -> None:
        """Raise where a loss cannot train anything."""
        if not (isinstance(loss, Tensor) and loss.requires_grad):
            raise ConfigurationError(
                f"the loss given to optimizer {self.name!r} has no gradient: does it depend on the model, and is any "
                "weight trainable?"
            )
        if loss.numel() != 1:
            raise ConfigurationError(
                f"the loss given to optimizer {self.name!r} has shape {tuple(loss.shape)}, and must be one number: "
                "take its mean, as torch's losses do with reduction='mean'"
            )
        if self._others and not self._trained():
            raise ConfigurationError(f"optimizer {self.name!r} holds no trainable weight: all are frozen")

    def _trained(self) -> list[Tensor]:
        return [p for p in held_by(self.optimizer) if p.requires_grad]

    def close(self) -> bool:
        """End the window: the mean over all processes and over its micro-batches, unscaled. False if the scaler says to
        skip this update."""
        count, self.microbatches = self.microbatches, 0
        self._replicas.average_gradients(self.optimizer)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
            if any_process(any(found.item() for found in self._infinities().values())):
                self._note_infinity()
                self.scaler.update()
                return False
        if count > 1:
            divide_([own_part(gradient) for gradient in self.gradients()], count)
        return True

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Let the optimizer step along the gradient that is there."""
        if closure is not None:
            self.optimizer.step(closure)
        else:
            take_step(self.optimizer)
        if self.scaler is None:
            return
        if self._infinities():
            self.scaler.update()
        else:  # an update without gradients teaches the scaler nothing
            self._renew_scaler()

    def _note_infinity(self) -> None:
        """Let the scaler know of one that another process met, in its part of a weight."""
        for found in self._infinities().values():
            found.fill_(1.0)

    def _renew_scaler(self) -> None:
        """A scaler remembers that it unscaled until it is updated; a new one with the same state does not."""
        if self.scaler is not None:
            state = self.scaler.state_dict()
            self.scaler = torch.amp.GradScaler(self.scaler._device)
            self.scaler.load_state_dict(state)

    def _infinities(self) -> dict[torch.device, Tensor]:
        """Whether unscaling met an infinity, by device; empty if there was no gradient. What ``scaler.step`` reads."""
        if self.scaler is None:
            return {}
        found: dict[torch.device, Tensor] = self.scaler._per_optimizer_states[id(self.optimizer)][
            "found_inf_per_device"
        ]
        return found


@contextlib.contextmanager
def _keeping_gradients(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let a backward pass change nothing about these parameters' gradients."""
    kept = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


def _needs_closure(optimizer: Optimizer) -> bool:
    parameters = inspect.signature(type(optimizer).step).parameters
    return "closure" in parameters and parameters["closure"].default is inspect.Parameter.empty


class Windows:
    """The windows of all optimizers, by name.

    Args:
        optimizers: the optimizers, by name.
        parameters: all parameters of the models.
        replicas: what averages gradients over processes.
        device: where the gradient scalers live.
        scaled: whether to scale gradients (float16).
        accumulate: micro-batches per window.

    Raises:
        ConfigurationError: an optimizer that evaluates repeatedly meets accumulation, a scaler, or sharded weights.
    """

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        parameters: Sequence[Tensor],
        device: torch.device,
        replicas: Replicas,
        *,
        scaled: bool,
        accumulate: int,
    ) -> None:
        self._windows: dict[str, Window] = {}
        for name, optimizer in optimizers.items():
            scaler = torch.amp.GradScaler(device.type) if scaled else None
            held = set(map(id, held_by(optimizer)))
            others = [parameter for parameter in parameters if id(parameter) not in held]
            others += [p for other, each in optimizers.items() if other != name for p in held_by(each)]
            window = Window(name, optimizer, scaler, others=others, replicas=replicas)
            if scaled and any(parameter.dtype == torch.float16 for parameter in held_by(optimizer)):
                raise ConfigurationError(
                    f"optimizer {name!r} holds float16 weights, whose gradients a scaler cannot unscale: keep the "
                    "model in float32, which precision='float16' casts where it may"
                )
            if window.evaluates_repeatedly and any(map(is_sharded, held_by(optimizer))):
                raise ConfigurationError(
                    f"optimizer {name!r} ({type(optimizer).__name__}) joins all weights to one row, which sharded ones "
                    "do not allow: give each process a copy of the model"
                )
            if window.evaluates_repeatedly and (accumulate > 1 or scaled):
                raise ConfigurationError(
                    f"optimizer {name!r} ({type(optimizer).__name__}) evaluates the loss several times a step, which "
                    "is not defined with accumulate > 1 or precision='float16'"
                )
            self._windows[name] = window
        self._only = window if len(self._windows) == 1 else None

    def __iter__(self) -> Iterator[Window]:
        return iter(self._windows.values())

    def ends_with_next(self, accumulate: int) -> bool:
        """Whether there is one window alone, which the next micro-batch ends."""
        windows = list(self)
        return len(windows) == 1 and windows[0].microbatches + 1 == accumulate and not windows[0]._others

    def named(self, name: str | None) -> Window:
        """The window of an optimizer, or of the only one.

        Raises:
            ConfigurationError: there is no such optimizer, or several to choose from.
        """
        window = self._only if name is None else self._windows.get(name)
        if window is not None:
            return window
        names = ", ".join(map(repr, self._windows))
        if name is None:
            raise ConfigurationError(f"say which optimizer to update: one of {names}")
        raise ConfigurationError(f"no optimizer {name!r}: there are {names}")
