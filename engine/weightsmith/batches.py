"""One pass over a run's data, and where in it the run is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from weightsmith.randomness import random_states, restore_random_states

__all__ = ["Pass", "length_of"]


class Pass(Iterator[Any]):
    """One pass over the data, begun when the first batch is asked for: the order is then drawn at the same point of the
    run in a whole run and in one that goes on.

    A loader with ``state_dict`` and ``load_state_dict`` (torchdata's ``StatefulDataLoader``) says itself where it is.
    Of any other, the batches that were taken are gone through again, from the random states of the beginning: exact
    wherever the order is drawn at the beginning of the pass, as torch's samplers do.

    Args:
        data: what to go through.
        after: the pass before, if any. An iterator has no beginning to go back to: of it, this pass takes what is left.

    Attributes:
        taken: the batches that were taken.
    """

    def __init__(self, data: Iterable[Any], after: Pass | None = None) -> None:
        self._data = data
        self.taken = 0
        self._before: int = 0
        self._is_once = False
        """Whether the data are an iterator, as far as was seen: asking them may begin them anew."""
        if after is not None and after._data is data and after._is_once:
            self._is_once, self._before = True, after._before + after.taken
        self._iterator: Iterator[Any] | None = None
        self._beginning: dict[str, Any] = {}
        self._ahead: list[Any] = []

    def __next__(self) -> Any:
        if self._iterator is None:
            drawn_from = None if self._lies_in_order() else random_states()
            self._beginning = {"random": drawn_from, **self._sources(), "warm": _has_workers(self._data)}
            self._iterator = iter(self._data)
            self._is_once = self._iterator is self._data
        batch = self._ahead.pop() if self._ahead else next(self._iterator)
        self.taken += 1
        return batch

    def look_for_end(self) -> None:
        """At the end of an epoch: if all batches that the data state were taken, look whether these are all. Then a
        run that goes on from here need not go through them again."""
        if self._iterator is None or self._ahead or self.taken != length_of(self._data):
            return
        batch = next(self._iterator, _END)
        if batch is _END:
            self._iterator = _NOTHING
        else:
            self._ahead.append(batch)

    def state_dict(self) -> dict[str, Any]:
        """Where the pass is."""
        state = {"taken": self.taken, "before": self._before, "ahead": bool(self._ahead), "now": self._sources()}
        if self._iterator is None:
            return {**state, "stage": "not begun"}
        if self._iterator is _NOTHING:
            return {**state, "stage": "over"}
        if _is_stateful(self._data):
            stateful: Any = self._data
            state["loader"] = stateful.state_dict()
        return {**state, "stage": "begun", "beginning": self._beginning}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a pass was. Changes the global random states, which are the caller's to restore.

        Raises:
            ValueError: the data have fewer batches than were taken, or are an iterator that has given more.
        """
        if _is_iterator(self._data):
            self._skip(state["before"] + state["taken"] + state["ahead"] - self._before)
            self._is_once, self._before, self._iterator = True, state["before"], iter(self._data)
        elif state["stage"] == "over":
            self._wake_workers()
            self._iterator = _NOTHING
        elif state["stage"] == "begun":
            self._return_to(state)
        self.taken = state["taken"]
        self._restore(state["now"])

    def _return_to(self, state: Mapping[str, Any]) -> None:
        """Into a pass that had begun, by the loader's own state, or by going through what was taken."""
        self._beginning = dict(state["beginning"])
        is_told = "loader" in state and _is_stateful(self._data)
        if self._beginning["warm"] and not is_told:
            self._wake_workers()
        if self._beginning["random"] is not None:
            restore_random_states(self._beginning["random"])
        elif not self._lies_in_order():  # other data than those of the saved run
            self._beginning["random"] = random_states()
        self._restore(self._beginning)
        if is_told:
            stateful: Any = self._data
            stateful.load_state_dict(state["loader"])
            self._iterator = iter(stateful)
            return
        self._iterator = iter(self._data)
        self._skip(state["taken"])
        if state["ahead"]:
            self._ahead.append(next(self._iterator))

    def _lies_in_order(self) -> bool:
        """Whether the batches are in one order whatever is drawn."""
        return type(self._data) in (list, tuple)

    def _wake_workers(self) -> None:
        """Workers that live on draw their seed before the first pass, and never again."""
        if _keeps_workers(self._data):
            iter(self._data)

    def _skip(self, count: int) -> None:
        iterator = self._iterator or iter(self._data)
        if count < 0:
            raise ValueError(
                "the data are an iterator that has given more than it had when the checkpoint was saved: give run() a "
                "new one, or a list or loader, which can be gone through again"
            )
        for place in range(count):
            if next(iterator, _END) is _END:
                raise ValueError(
                    f"the data end after {place} batches, of which {count} were taken when the checkpoint was saved: "
                    "give run() the data that the saved run had"
                )

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
_NOTHING: Iterator[Any] = iter(())


def length_of(data: object) -> int | None:
    """How many batches the data state that they have; ``None`` if they do not say."""
    try:
        return len(data)  # type: ignore[arg-type]  # anything that has a length
    except TypeError:  # none, or an iterable dataset under a sampler without an end
        return None


def _is_iterator(data: Iterable[Any]) -> bool:
    """Whether it can be gone through once only."""
    return isinstance(data, Iterator) and iter(data) is data


def _is_stateful(data: object) -> bool:
    return hasattr(data, "state_dict") and hasattr(data, "load_state_dict")


def _keeps_workers(data: object) -> bool:
    """Whether it is a loader of torch's whose workers live on from pass to pass."""
    return bool(getattr(data, "persistent_workers", False))


def _has_workers(data: object) -> bool:
    """Whether it is such a loader, and they are alive."""
    return _keeps_workers(data) and getattr(data, "_iterator", None) is not None
