"""Whether a saved run fits the one that is to go on with it."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from weightsmith.checkpoint.contents import class_of, described, facts_of, model_entries, models_of, settings_of
from weightsmith.checkpoint.folder import Contents
from weightsmith.errors import ConfigurationError

if TYPE_CHECKING:
    from weightsmith.trainer.run import DurableRun

__all__ = ["refuse_misfits"]

logger = logging.getLogger(__name__)


def refuse_misfits(trainer: DurableRun, contents: Contents, *, allow_changes: bool) -> bool:
    """See that a saved run fits this one.

    Args:
        trainer: this one.
        contents: the saved one.
        allow_changes: whether settings and plugins may be others; then they are logged.

    Returns:
        Whether any are.

    Raises:
        ConfigurationError: it does not fit; the message lists everything that is unknown, missing or another.
    """
    never = [*_other_entries(trainer, contents), *_other_optimizers(trainer, contents)]
    changes = [*_other_settings(trainer, contents.manifest), *_other_plugins(trainer, contents)]
    if never or (changes and not allow_changes):
        mend = "where that is meant, resume with allow_changes=True"
        if never:
            mend = "make the trainer as the saved one was; Pretrained loads weights alone, into other shapes as well"
        raise ConfigurationError("\n- ".join(["the checkpoint is of another run:", *never, *changes]) + f"\n{mend}")
    for change in changes:
        logger.warning("resumed with a change: %s", change)
    now, then = facts_of(trainer)["versions"], contents.manifest["versions"]
    others = [f"{name} {then.get(name)}, here {version}" for name, version in now.items() if then.get(name) != version]
    if others:
        logger.warning(
            "the checkpoint was saved with other versions (%s): the run goes on, but perhaps not bit for bit",
            "; ".join(others),
        )
    return bool(changes)


def _other_entries(trainer: DurableRun, contents: Contents) -> Iterator[str]:
    here, there = dict(model_entries(models_of(trainer))), {**contents.weights, **contents.state["models"]}
    for name in there.keys() - here.keys():
        yield f"{name!r} is in the checkpoint, and not in the model"
    for name in sorted(here.keys() - there.keys()):
        yield f"{name!r} is in the model, and not in the checkpoint"
    for name in [name for name in here if name in there]:
        one, other = here[name], there[name]
        if isinstance(one, Tensor) and isinstance(other, Tensor) and _kind(one) != _kind(other):
            yield f"{name!r} is {_kind(other)} in the checkpoint, {_kind(one)} here"


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _other_optimizers(trainer: DurableRun, contents: Contents) -> Iterator[str]:
    saved = contents.state["optimizers"]
    if saved.keys() != trainer.optimizers.keys():
        yield f"its optimizers are {', '.join(map(repr, saved))}, here {', '.join(map(repr, trainer.optimizers))}"
        return
    for name, optimizer in trainer.optimizers.items():
        here = [len(group["params"]) for group in optimizer.param_groups]
        there = [len(group["params"]) for group in saved[name]["param_groups"]]
        if here != there:
            yield f"the optimizer {name!r} has groups of {there} parameters in the checkpoint, of {here} here"
        one, other = class_of(optimizer), contents.manifest["settings"]["optimizers"].get(name)
        if one != other:
            yield f"the optimizer {name!r} is {other} in the checkpoint, {one} here"


def _other_settings(trainer: DurableRun, manifest: Mapping[str, Any]) -> Iterator[str]:
    here, there = settings_of(trainer), manifest["settings"]
    for name in ("accumulate", "precision", "keep", "seed"):
        if here[name] != there[name] and (name != "seed" or trainer.has_own_seed):
            yield f"{name} is {there[name]!r} in the checkpoint, {here[name]!r} here"


def _other_plugins(trainer: DurableRun, contents: Contents) -> Iterator[str]:
    is_same_python = contents.manifest["versions"]["python"].split(".")[:2] == platform.python_version().split(".")[:2]
    here = {label: described(plugin) for label, plugin in trainer._attachments.labels.items()}
    there = contents.manifest["plugins"]
    for label in [label for label in there if label not in here]:
        yield f"the plugin {label} is not attached, which was {there[label]['configuration']}"
    for label in [label for label in here if label not in there]:
        yield f"the plugin {label} is attached, {here[label]['configuration']}, and was not"
    for label in [label for label in here if label in there]:
        one, other = here[label], there[label]
        if one["configuration"] != other["configuration"]:
            yield f"the plugin {label} was {other['configuration']}, and is {one['configuration']}"
        elif one["code"] != other["code"] and is_same_python:  # others parse a class into another tree
            yield f"the plugin {label} has other code than it had"
    if list(here) != list(there) and here.keys() == there.keys():
        yield f"the plugins are in another order: {', '.join(here)}, where it was {', '.join(there)}"
