"""The means of an average in the weights' place, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from weightsmith.binding import Binding
from weightsmith.errors import ConfigurationError
from weightsmith.weights import persistent_buffers

if TYPE_CHECKING:
    from weightsmith.trainer import Trainer

__all__ = ["lending"]


@contextlib.contextmanager
def lending(trainer: Trainer, average: Binding, constraints: Iterable[Binding]) -> Iterator[None]:
    """Put an average's means in the weights' place, let the constraints have the last word, and put everything back.

    Raises:
        ConfigurationError: the average has not seen a weight yet.
    """
    targets = average.targets()
    for target in targets:
        if "mean" not in target.site.state:
            raise ConfigurationError(f"{average.plugin!r} has no mean of {target.weight.name!r} yet: run first")
    buffers = [(buffer, buffer.clone()) for buffer in persistent_buffers(trainer.models).values()]
    weights = [(target.tensor, target.tensor.detach().clone()) for target in targets]
    try:
        with torch.no_grad():
            for target in targets:
                target.tensor.copy_(target.site.state["mean"])
        for constraint in constraints:
            if not constraint.to_parametrize():
                constraint.current().enforce(constraint)
        yield
    finally:
        with torch.no_grad():
            for tensor, value in [*weights, *buffers]:
                tensor.copy_(value)
