"""One pass over a run's data, and where in it the run is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from weightsmith.randomness import random_states, restore_random_states

__all__ = ["Pass"]


class Pass(Iterator[Any]):
    """One pass over the data, begun when the first batch is asked for: the order is then drawn at the same point of the
    run in a whole run and in one that goes on.

    A loader with ``state_dict`` and ``load_state_dict`` (torchdata's ``StatefulDataLoader``) says itself where it is.
    Of any other, the batches that were taken are gone through again, from the random states of the beginning: exact
    wherever the order is drawn at the beginning of the pass, as torch's samplers do.

    Args:
        data: what to go through.

    Attributes:
        taken: the batches that were taken.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self._data = data
        self._iterator: Iterator[Any] | None = None
        self._beginning: dict[str, Any] = {}
        self.taken = 0

    def __next__(self) -> Any:
        if self._iterator is None:
            self._beginning = {"random": random_states(), **self._sources(), "warm": _keeps_workers(self._data)}
            self._iterator = iter(self._data)
        batch = next(self._iterator)
        self.taken += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the pass is. Empty if it has not begun."""
        if self._iterator is None:
            return {}
        state = {"taken": self.taken, "beginning": self._beginning, "now": self._sources()}
        if _is_stateful(self._data):
            stateful: Any = self._data
            state["loader"] = stateful.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a pass was. Changes the global random states, which are the caller's to restore.

        Raises:
            ValueError: the data have fewer batches than were taken.
        """
        if not state:
            return
        stateful: Any = self._data
        self._beginning = dict(state["beginning"])
        restore_random_states(self._beginning["random"])
        if _is_stateful(self._data) and "loader" in state:
            self._restore(self._beginning)
            stateful.load_state_dict(state["loader"])
            self._iterator = iter(stateful)
        else:
            if self._beginning["warm"]:
                iter(self._data)  # workers that live on draw their seed before the first pass, and never again
                restore_random_states(self._beginning["random"])
            self._restore(self._beginning)
            self._iterator = iter(self._data)
            for place in range(state["taken"]):
                if next(self._iterator, _END) is _END:
                    raise ValueError(
                        f"the data end after {place} batches, of which {state['taken']} were taken when the checkpoint "
                        "was saved: give run() the data that the saved run had"
                    )
        self.taken = state["taken"]
        self._restore(state["now"])

    def _sources(self) -> dict[str, Any]:
        """What the order of a loader of torch's depends on besides the global generators."""
        epochs = {where: sampler.epoch for where, sampler in self._samplers() if hasattr(sampler, "epoch")}
        return {"generators": {where: g.get_state() for where, g in self._generators()}, "epochs": epochs}

    def _restore(self, sources: Mapping[str, Any]) -> None:
        for where, sampler in self._samplers():
            if where in sources["epochs"]:
                sampler.epoch = sources["epochs"][where]
        for where, generator in self._generators():
            if where in sources["generators"]:
                generator.set_state(sources["generators"][where])

    def _samplers(self) -> Iterator[tuple[str, Any]]:
        for where in ("sampler", "batch_sampler"):
            sampler = getattr(self._data, where, None)
            if sampler is not None:
                yield where, sampler
                if getattr(sampler, "sampler", None) is not None:
                    yield f"{where}.sampler", sampler.sampler

    def _generators(self) -> Iterator[tuple[str, torch.Generator]]:
        for where, owner in [("loader", self._data), *self._samplers()]:
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                yield where, generator


_END = object()


def _is_stateful(data: object) -> bool:
    return hasattr(data, "state_dict") and hasattr(data, "load_state_dict")


def _keeps_workers(data: object) -> bool:
    """Whether it is a loader of torch's whose workers are alive from an earlier pass."""
    return bool(getattr(data, "persistent_workers", False)) and getattr(data, "_iterator", None) is not None
