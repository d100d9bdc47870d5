"""One optimizer and the gradients that it gathers until its next step."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from weightsmith.tensors import all_finite, divide_
from weightsmith.weights import held_by

__all__ = ["Window"]


class Window:
    """An optimizer's accumulation window: micro-batches go in, one gradient comes out.

    Attributes:
        name: the optimizer's name.
        optimizer: the optimizer.
        microbatches: how many micro-batches the open window holds; 0 when none is open.
        scaler: the gradient scaler, for float16.
    """

    def __init__(self, name: str, optimizer: Optimizer, scaler: torch.amp.GradScaler | None, *, alone: bool) -> None:
        self.name = name
        self.optimizer = optimizer
        self.scaler = scaler
        self.microbatches = 0
        self._alone = alone

    @property
    def evaluates_repeatedly(self) -> bool:
        """Whether the optimizer calls its closure several times a step, as LBFGS does."""
        parameters = inspect.signature(type(self.optimizer).step).parameters
        return "closure" in parameters and parameters["closure"].default is inspect.Parameter.empty

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in held_by(self.optimizer) if p.grad is not None]

    def clear(self) -> None:
        """Forget the gradients: the next window opens empty."""
        self.microbatches = 0
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient, to the weights of this optimizer only."""
        if self.microbatches == 0:
            self.clear()
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        # An optimizer that holds every trainable weight needs no fence around them, which would cost 6 µs a step.
        torch.autograd.backward(scaled, inputs=None if self._alone else self._trained())
        self.microbatches += 1

    def _trained(self) -> list[Tensor]:
        return [p for p in held_by(self.optimizer) if p.requires_grad]

    def close(self) -> bool:
        """End the window: the mean over its micro-batches, unscaled. False if the scaler says to skip this update."""
        count, self.microbatches = self.microbatches, 0
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
            if not all_finite(self.gradients()):
                self.scaler.update()
                return False
        if count > 1:
            divide_(self.gradients(), count)
        return True

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Let the optimizer step along the gradient that is there."""
        if closure is not None:
            self.optimizer.step(closure)
        else:
            self.optimizer.step()
        if self.scaler is not None:
            self.scaler.update()
