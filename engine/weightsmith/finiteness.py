"""Losses, gradients and weights that are no numbers any more: found in the update in which they appear."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weightsmith.errors import ConfigurationError, GoBack, NonFiniteError
from weightsmith.optimizers import held_by
from weightsmith.tensors import nonfinite_flag

if TYPE_CHECKING:
    from weightsmith.trainer.pipeline import UpdatePipeline
    from weightsmith.window import Window

__all__ = ["FinitenessWatch", "NonFinite", "Restore", "first_nonfinite", "parameters_of", "scale_learning_rates"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restore:
    """Go back to the last good checkpoint when something is not finite.

    Args:
        learning_rate: what the learning rates are multiplied by each time, above 0 and at most 1. Default 0.5.
        times: how often in a run, at least 1. Default 3.
    """

    learning_rate: float = 0.5
    times: int = 3

    def __post_init__(self) -> None:
        if not (0 < self.learning_rate <= 1 and self.times >= 1):
            raise ConfigurationError(f"{self!r}: learning_rate must be above 0 and at most 1, and times at least 1")


NonFinite: TypeAlias = Literal["raise", "skip", "restore", "ignore"] | Restore
"""What to do about a loss, a gradient or a weight that is not finite."""

_POLICIES = ("raise", "skip", "restore", "ignore")
_PATIENCE = 100
"""Updates that may be skipped one after another."""


class FinitenessWatch:
    """Looks at every update before it steps.

    ``"raise"`` looks at the loss alone, into which a gradient or a weight that is not finite leads in the next update,
    and at the end of every epoch at the weights. On another device than a CPU it only notes there in which update the
    loss was not finite first; the note is read at the end of the epoch. The other policies look at the gradients as
    well, and read one number per update.

    Args:
        policy: what to do.
        trainer: whose updates.

    Attributes:
        skipped: the updates skipped one after another, up to now.
    """

    def __init__(self, policy: NonFinite, trainer: UpdatePipeline) -> None:
        if not isinstance(policy, Restore) and policy not in _POLICIES:
            raise ConfigurationError(
                f"nonfinite={policy!r}: give one of {', '.join(map(repr, _POLICIES))}, or a Restore"
            )
        if policy == "skip" and any(window.evaluates_repeatedly for window in trainer._windows):
            raise ConfigurationError(
                "nonfinite='skip': an optimizer that evaluates the loss several times a step (LBFGS) can skip none"
            )
        self.policy = Restore() if policy == "restore" else policy
        self._trainer = trainer
        self.skipped = 0
        self._bad: set[str] = set()
        """The optimizers in whose open window a micro-batch had a loss that is not finite."""
        self._noted: dict[str, Tensor] = {}
        """By optimizer, the first update that was not finite, on the device; 0 if there is none."""

    def passes(self, window: Window) -> bool:
        """Whether the update may go on to its step.

        Raises:
            NonFiniteError: it may not, and the policy is to raise, or patience is at its end.
        """
        if self.policy == "ignore":
            return True
        loss, was_bad = self._trainer.state.losses[window.name], window.name in self._bad
        self._bad.discard(window.name)
        if self.policy == "raise" and not loss.is_cpu:
            self._note(window.name, loss)
            return True
        if (
            not was_bad
            and math.isfinite(loss.item())
            and (self.policy == "raise" or self._has_finite_gradients(window, loss))
        ):
            self.skipped = 0
            return True
        self._deal_with(window)
        return False

    def look_at_microbatch(self, window: Window) -> None:
        """Of a window with several: whether this one's loss is finite, before others hide it."""
        loss = self._trainer.state.losses[window.name]
        if window.microbatches == 1:  # what a window that was abandoned held is no concern of this one
            self._bad.discard(window.name)
        if self.policy == "ignore":
            return
        if self.policy == "raise" and not loss.is_cpu:
            self._note(window.name, loss)
        elif not math.isfinite(loss.item()):
            self._bad.add(window.name)

    def _has_finite_gradients(self, window: Window, loss: Tensor) -> bool:
        flag = nonfinite_flag(window.gradients(), torch.zeros((), device=loss.device))
        return not flag.item()

    def look_at_weights(self) -> None:
        """At the end of an epoch: whether all is finite that is to go on.

        Raises:
            NonFiniteError: it is not, and the policy is not to ignore it.
        """
        if self.policy == "ignore":
            return
        noted_until_now, self._noted = self._noted, {}
        for name, noted in noted_until_now.items():
            if int(noted):
                raise NonFiniteError(f"{_place(self._trainer, name, int(noted))}: the loss is not finite")
        culprit = first_nonfinite(self._trainer.models, self._trainer.optimizers)
        if culprit is not None:
            state = self._trainer.state
            self._give_up(f"after update {state.update}, at the end of epoch {state.epoch}: {culprit} is not finite")

    def look_at_loss(self, window: Window) -> None:
        """After a step that evaluated the loss several times."""
        if self.policy != "ignore" and not math.isfinite(self._trainer.state.losses[window.name].item()):
            self._give_up(self._diagnosis(window))

    def _note(self, name: str, loss: Tensor) -> None:
        """Keep the number of the update, without waiting for the device."""
        noted = self._noted.setdefault(name, torch.zeros((), dtype=torch.int64, device=loss.device))
        noted.add_(torch.where(~loss.isfinite() & (noted == 0), self._trainer.state.update, 0))

    def _deal_with(self, window: Window) -> None:
        message = self._diagnosis(window)
        if self.policy != "skip":
            self._give_up(message)
        culprit = first_nonfinite(self._trainer.models, {})
        if culprit is not None:  # a skipped update would not mend it
            raise NonFiniteError(
                f"{message}; to skip the update is too late, as {culprit} is not finite, into which the forward pass "
                "writes: look at the data, or use nonfinite='restore'"
            )
        self.skipped += 1
        if self.skipped > _PATIENCE:
            raise NonFiniteError(f"{message}; {_PATIENCE} updates in a row were skipped for that")
        logger.warning("%s; the update is skipped", message)

    def _give_up(self, message: str) -> None:
        if isinstance(self.policy, Restore):
            raise GoBack(message)
        raise NonFiniteError(f"{message}. Try a lower learning rate, ClipNorm, or nonfinite='skip' or 'restore'")

    def _diagnosis(self, window: Window) -> str:
        """What is not finite, and where it began."""
        state = self._trainer.state
        place = _place(self._trainer, window.name, state.update)
        names = {id(weight): name for name, weight in parameters_of(self._trainer.models).items()}
        loss = f"the loss is {state.losses[window.name].item()}"
        for weight in held_by(window.optimizer):
            if not bool(weight.detach().isfinite().all()):
                since = f"since update {state.updates[window.name]}" if state.updates[window.name] else "from the start"
                return f"{place}: {loss}, as the weight {names.get(id(weight))!r} is not finite {since}"
        for weight in held_by(window.optimizer):
            if weight.grad is not None and not bool(weight.grad.isfinite().all()):
                return f"{place}: {loss}, and the gradient of the weight {names.get(id(weight))!r} is not finite"
        return f"{place}: {loss}, though all gradients and weights are finite"


def first_nonfinite(models: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> str | None:
    """The first weight that is trained and not finite, or whose optimizer remembers something that is not, or buffer
    that holds a NaN (an infinity may stand in a mask); in words."""
    for name, weight in parameters_of(models).items():
        if weight.requires_grad and not bool(weight.detach().isfinite().all()):
            return f"the weight {name!r}"
    for model in models.values():
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and bool(buffer.isnan().any()):
                return f"the buffer {name!r}"
    for name, optimizer in optimizers.items():
        for place, held in enumerate(held_by(optimizer)):
            for key, value in optimizer.state.get(held, {}).items():
                if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
                    return f"{key!r}, which the optimizer {name!r} remembers of its parameter {place},"
    return None


def parameters_of(models: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """All parameters, under the names of the models' state dicts."""
    return {
        f"{name}.{key}" if name else key: weight
        for name, model in models.items()
        for key, weight in model.named_parameters()
    }


def scale_learning_rates(optimizers: Mapping[str, Optimizer], schedulers: Mapping[str, Any], factor: float) -> None:
    """Multiply the learning rates of optimizers, and those that torch's schedulers start from and aim at."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            for key in group.keys() & {"lr", "initial_lr", "max_lr", "min_lr"}:
                group[key] = group[key] * factor
    nested = list(schedulers.values())
    while nested:
        scheduler = nested.pop()
        nested += getattr(scheduler, "_schedulers", [])
        for key in ("base_lrs", "max_lrs", "_last_lr"):
            if isinstance(getattr(scheduler, key, None), list):
                setattr(scheduler, key, [rate * factor for rate in getattr(scheduler, key)])


def _place(trainer: UpdatePipeline, optimizer: str, update: int) -> str:
    which = f" of the optimizer {optimizer!r}" if len(trainer.optimizers) > 1 else ""
    return f"update {update}{which}, epoch {trainer.state.epoch}"
