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

from weightsmith.distributed import any_process, gathered_objects, is_distributed, told_by_any
from weightsmith.errors import ConfigurationError, GoBack, NonFiniteError
from weightsmith.optimizers import held_by
from weightsmith.replicas import inside
from weightsmith.shards import own_part
from weightsmith.tensors import nonfinite_flag

if TYPE_CHECKING:
    from weightsmith.trainer.pipeline import UpdatePipeline
    from weightsmith.window import Window

__all__ = [
    "FinitenessWatch",
    "NonFinite",
    "Restore",
    "first_nonfinite",
    "first_nonfinite_of_all",
    "parameters_of",
    "scale_learning_rates",
]

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

    Of several processes each has a loss of its own. What they do about it, they do together; but with ``"raise"`` one
    raises alone, and the others end when they next wait for it.

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
        self._can_skip = not any(window.evaluates_repeatedly for window in trainer._windows)
        if policy == "skip" and not self._can_skip:
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
        is_bad = was_bad or not math.isfinite(loss.item())
        if self.policy != "raise":  # each process has a loss of its own, and perhaps a part of the gradients
            is_bad = any_process(is_bad or not self._has_finite_gradients(window, loss))
        if not is_bad:
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
        flag = nonfinite_flag(list(map(own_part, window.gradients())), torch.zeros((), device=loss.device))
        return not flag.item()

    def look_at_weights(self) -> None:
        """At the end of an epoch: whether all is finite that is to go on.

        Raises:
            NonFiniteError: it is not, and the policy is not to ignore it.
        """
        if self.policy == "ignore":
            return
        problem = told_by_any(self._noted_problem())
        if problem is not None:
            raise NonFiniteError(problem)
        culprit = first_nonfinite_of_all(self._trainer.models, self._trainer.optimizers)
        if culprit is not None:
            state = self._trainer.state
            self._give_up(f"after update {state.update}, at the end of epoch {state.epoch}: {culprit} is not finite")

    def _noted_problem(self) -> str | None:
        """The first loss noted that was not finite, in words; what was noted is forgotten."""
        noted_until_now, self._noted = self._noted, {}
        for name, noted in noted_until_now.items():
            if int(noted):
                return f"{_place(self._trainer, name, int(noted))}: the loss is not finite"
        return None

    def look_at_loss(self, window: Window) -> None:
        """After a step that evaluated the loss several times."""
        if self.policy == "ignore":
            return
        is_bad = not math.isfinite(self._trainer.state.losses[window.name].item())
        if is_bad if self.policy == "raise" else any_process(is_bad):
            self._give_up(self._common_diagnosis(window))

    def _note(self, name: str, loss: Tensor) -> None:
        """Keep the number of the update, without waiting for the device."""
        noted = self._noted.setdefault(name, torch.zeros((), dtype=torch.int64, device=loss.device))
        noted.add_(torch.where(~loss.isfinite() & (noted == 0), self._trainer.state.update, 0))

    def _deal_with(self, window: Window) -> None:
        message = self._common_diagnosis(window)
        if self.policy != "skip":
            self._give_up(message)
        culprit = first_nonfinite_of_all(self._trainer.models, {})
        if culprit is not None:  # a skipped update would not mend it
            raise NonFiniteError(
                f"{message}; to skip the update is too late, as {culprit} is not finite already: look at the data, "
                "and at what else writes to it, or use nonfinite='restore'"
            )
        self.skipped += 1
        if self.skipped > _PATIENCE:
            raise NonFiniteError(f"{message}; {_PATIENCE} updates in a row were skipped for that")
        logger.warning("%s; the update is skipped", message)

    def _give_up(self, message: str) -> None:
        if isinstance(self.policy, Restore):
            raise GoBack(message)
        advised = "'skip' or 'restore'" if self._can_skip and self.policy != "skip" else "'restore'"
        raise NonFiniteError(f"{message}. Try a lower learning rate, ClipNorm, or nonfinite={advised}")

    def _common_diagnosis(self, window: Window) -> str:
        """As :meth:`_diagnosis`; where processes decide together, in the words of the first whose own loss is not
        finite, else of the first that found anything."""
        here, has_found = self._diagnosis(window)
        if self.policy == "raise" or not is_distributed():
            return here
        is_own = not math.isfinite(self._trainer.state.losses[window.name].item())
        return told_by_any(here if is_own else None) or told_by_any(here if has_found else None) or here

    def _diagnosis(self, window: Window) -> tuple[str, bool]:
        """What is not finite here, and where it began; and whether a weight or a gradient is it."""
        state = self._trainer.state
        place = _place(self._trainer, window.name, state.update)
        names = {id(weight): name for name, weight in parameters_of(self._trainer.models).items()}
        loss = f"the loss is {state.losses[window.name].item()}"
        for weight in held_by(window.optimizer):
            if not _is_finite(weight):
                since = f"since update {state.updates[window.name]}" if state.updates[window.name] else "from the start"
                return f"{place}: {loss}, as the weight {names.get(id(weight))!r} is not finite {since}", True
        for weight in held_by(window.optimizer):
            if weight.grad is not None and not _is_finite(weight.grad):
                return f"{place}: {loss}, and the gradient of the weight {names.get(id(weight))!r} is not finite", True
        return f"{place}: {loss}, though all gradients and weights are finite", False


def _is_finite(tensor: Tensor) -> bool:
    """Whether all is finite that this process holds of it."""
    here = own_part(tensor.detach())
    return math.isfinite(abs(here.sum().item())) or bool(here.isfinite().all())  # a sum is faster, and may overflow


def first_nonfinite(models: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> str | None:
    """The first weight that is trained and not finite, or whose optimizer remembers something that is not, or buffer
    that holds a NaN (an infinity may stand in a mask); in words. Of sharded ones, what is here is looked at."""
    for name, weight in parameters_of(models).items():
        if weight.requires_grad and not _is_finite(weight):
            return f"the weight {name!r}"
    for model in models.values():
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and bool(own_part(buffer).isnan().any()):
                return f"the buffer {name!r}"
    for name, optimizer in optimizers.items():
        for place, held in enumerate(held_by(optimizer)):
            for key, value in optimizer.state.get(held, {}).items():
                if isinstance(value, Tensor) and value.is_floating_point() and not _is_finite(value):
                    return f"{key!r}, which the optimizer {name!r} remembers of its parameter {place},"
    return None


def first_nonfinite_of_all(models: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> str | None:
    """As :func:`first_nonfinite`, of all processes together: each must ask, and all are told the same."""
    found = gathered_objects(first_nonfinite(models, optimizers))
    return next((culprit for culprit in found if culprit is not None), None)


def parameters_of(models: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """All parameters, under the names of the models' state dicts."""
    return {
        f"{name}.{key}" if name else key: weight
        for name, model in models.items()
        for key, weight in inside(model).named_parameters()
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
