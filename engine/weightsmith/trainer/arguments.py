"""What a Trainer is given, looked at before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from weightsmith.errors import ConfigurationError
from weightsmith.trainer.pipeline import Precision

__all__ = ["kept", "named", "refuse_misfits", "refuse_missing_device", "settle"]

T = TypeVar("T")


def refuse_misfits(
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    loss_fn: object,
    step: object,
    precision: str,
    accumulate: int,
) -> None:
    """Raise :class:`ConfigurationError` where a Trainer's arguments do not fit together."""
    if precision not in get_args(Precision):
        raise ConfigurationError(f"precision={precision!r}: give one of {', '.join(map(repr, get_args(Precision)))}")
    if not (isinstance(accumulate, int) and accumulate >= 1):
        raise ConfigurationError(f"accumulate={accumulate!r}: give a whole number of micro-batches, at least 1")
    if not models or not optimizers:
        raise ConfigurationError("give at least one model and one optimizer")
    if isinstance(loss_fn, type):
        raise ConfigurationError(f"loss_fn={loss_fn.__name__} is a class: give what it makes, {loss_fn.__name__}()")
    if step is None and (len(models) > 1 or len(optimizers) > 1):
        raise ConfigurationError("several models or optimizers need step=: the default step knows only one of each")
    if step is None and loss_fn is None:
        raise ConfigurationError("give loss_fn=, which the default step needs, or step=")


def kept(given: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    """What to save with the run, by name or by number."""
    if not isinstance(given, Mapping):
        given = {str(place): part for place, part in enumerate(given)}
    for name, part in given.items():
        for method in ("state_dict", "load_state_dict"):
            if not callable(getattr(part, method, None)):
                raise ConfigurationError(f"keep[{name!r}] is a {type(part).__name__}, which has no {method}()")
    return dict(given)


def named(given: Any, kind: type[T], what: str, name: str) -> dict[str, T]:
    """One or several by name, as several."""
    several = {name: given} if not isinstance(given, Mapping) else dict(given)
    for found in several.values():
        if not isinstance(found, kind):
            shown = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
            raise ConfigurationError(f"{what}= takes a torch {kind.__name__}, or several by name, not {shown}")
    return several


def refuse_missing_device(device: str | torch.device) -> None:
    """Raise :class:`ConfigurationError` where nothing can be put on a device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"device {str(device)!r} cannot be used here: {reason}") from error


def settle(models: Mapping[str, nn.Module], device: str | torch.device | None) -> torch.device:
    """Move the models to the device; by default it is where the first weight already is."""
    if device is not None:
        refuse_missing_device(device)
    if device is None:
        first = next((parameter for model in models.values() for parameter in model.parameters()), None)
        return torch.device("cpu") if first is None else first.device
    for model in models.values():
        model.to(device)
    return torch.device(device)
