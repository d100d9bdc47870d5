"""A saved run as this process can load it: every tensor sharded, or whole, as it is here, and in as many processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightsmith.checkpoint.contents import beside, model_entries, models_of
from weightsmith.checkpoint.folder import Contents
from weightsmith.checkpoint.trees import Place, key_of, replaced
from weightsmith.distributed import is_first, rank, world_size
from weightsmith.finiteness import parameters_of
from weightsmith.optimizers import held_by
from weightsmith.randomness import states_from
from weightsmith.shards import is_sharded, reshard, spread

if TYPE_CHECKING:
    from weightsmith.trainer.run import DurableRun

__all__ = ["fitted"]

_AVERAGED = ("gradients", "weights", "buffers")
"""Parts of a run of which the mean over the processes stands for what each had: gradients of an open window, and
running statistics since their last mean."""


def fitted(trainer: DurableRun, contents: Contents) -> Contents:
    """What of a saved run this process is to load, all in memory: of sharded weights its own part. Waits for nobody."""
    reshard(trainer.models.values())
    rooms = _Rooms(trainer)
    tree = {"weights": contents.weights, **contents.state}
    if contents.processes != world_size():
        tree = {**tree, **_means(contents, dict.fromkeys(_AVERAGED))}
    elif rooms.sharded_gradients:
        tree = {**tree, **_means(contents, {"gradients": rooms.sharded_gradients})}
    tree = _filled(tree, contents, rooms)
    if contents.processes != world_size():
        _settle_own_part(trainer, contents, tree)
    return replace(contents, weights=tree.pop("weights"), state=tree, source=None)


def _filled(tree: Any, contents: Contents, rooms: _Rooms) -> Any:
    """The tree with all its tensors in memory, each as its place here is."""
    source, targets = contents.source, dict[str, Tensor]()

    def placed(path: Place, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if source is None or not source.holds(key_of(path)):
            return rooms.placed(path, value)
        return targets.setdefault(key_of(path), rooms.room(path, value))

    found = replaced(tree, placed)
    if source is not None:
        source.load(targets)
    return found


def _settle_own_part(trainer: DurableRun, contents: Contents, tree: Any) -> None:
    """Of a run that other processes saved: the first goes on with what the first had of its own; others draw from
    streams of their own, and keep no notes that only the first keeps."""
    if is_first():
        return
    position, own = tree["position"], tree["trainer"]
    streams = states_from(contents.manifest["settings"]["seed"], "process", rank(), position["iteration"])
    tree["position"] = {**position, "random": streams}
    tree["trainer"] = {**own, "plugins": trainer._attachments.without_foreign_notes(own["plugins"])}


# -------------------------------------------------------------------- means over the processes that saved


def _means(contents: Contents, wanted: Mapping[str, set[str] | None]) -> dict[str, Any]:
    """Of parts of a run, what each process had of its own, as the means.

    Args:
        contents: the saved run.
        wanted: the parts, and of each the names of which the mean is wanted; ``None``: of all.
    """
    if contents.source is None:
        return {}
    here, trees = {"weights": contents.weights, **contents.state}, list(contents.source.trees())
    found = {part: dict(here[part]) for part in wanted}
    for part, chosen in wanted.items():
        names = {name for tree in trees for name in _own_numbers(tree[part])}
        for name in names if chosen is None else names & chosen:
            found[part][name] = _mean([tree[part].get(name) for tree in trees])
    return found


def _own_numbers(tensors: Mapping[str, Any]) -> set[str]:
    """The names of the real numbers that were not the same on all processes."""
    return {
        name
        for name, value in tensors.items()
        if isinstance(value, Tensor) and not value.is_meta and (value.is_floating_point() or value.is_complex())
    }


def _mean(values: list[Tensor | None]) -> Tensor:
    """The mean, those that are missing counting as zeros."""
    there = [value for value in values if value is not None]
    total = torch.zeros_like(there[0], dtype=torch.promote_types(there[0].dtype, torch.float32))
    for value in there:
        total += value
    return (total / len(values)).to(there[0].dtype)


# -------------------------------------------------------------------- where tensors have their place


class _Rooms:
    """Says of each tensor of a saved run how it lies here."""

    def __init__(self, trainer: DurableRun) -> None:
        self._attachments = trainer._attachments
        self._like = dict(_sharded(trainer))

    @property
    def sharded_gradients(self) -> set[str]:
        """The names of the weights whose gradients are sharded here."""
        return {path[1] for path in self._like if path[0] == "gradients"}

    def room(self, path: Place, outline: Tensor) -> Tensor:
        """An empty tensor for what is saved under a path, of which the outline is known."""
        like = self._of(path, outline)
        if like is not None:
            return torch.empty_like(like, dtype=outline.dtype)
        if path[:2] == ("trainer", "plugins") and path[3:4] == ("memory",):
            return self._attachments.room(path[2], path[4], outline)
        return torch.empty(outline.shape, dtype=outline.dtype)

    def placed(self, path: Place, value: Tensor) -> Tensor:
        """A whole tensor, as it lies here."""
        like = self._of(path, value)
        return value if like is None else spread(value.to(like.device), like)

    def _of(self, path: Place, value: Tensor) -> Tensor | None:
        """The sharded tensor to which something of its shape belongs."""
        like = self._like.get(path[:4] if path[0] == "optimizers" else path)
        return like if like is not None and like.shape == value.shape else None


def _sharded(trainer: DurableRun) -> Iterator[tuple[Place, Tensor]]:
    """The sharded tensors here, under the paths at which what belongs to them is saved."""
    entries = dict(model_entries(models_of(trainer)))
    weights = parameters_of(trainer.models)
    yield from _those_sharded(("weights",), entries)
    yield from _those_sharded(("gradients",), weights)
    for name, optimizer in trainer.optimizers.items():
        yield from _those_sharded(("optimizers", name, "state"), dict(enumerate(held_by(optimizer))))
    for name, others in beside(trainer).items():
        yield from _those_sharded(("beside", name), others)


def _those_sharded(path: Place, tensors: Mapping[Any, Any]) -> Iterator[tuple[Place, Tensor]]:
    for key, tensor in tensors.items():
        if isinstance(tensor, Tensor) and is_sharded(tensor):
            yield (*path, key), tensor.detach()
