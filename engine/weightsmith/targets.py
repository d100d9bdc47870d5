"""The weights in a plugin's hands, and what it needs of all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from operator import attrgetter
from typing import Any

from torch import Tensor

from weightsmith.errors import UnsupportedWeightError
from weightsmith.site import Site
from weightsmith.tensors import unit_view
from weightsmith.weights import Weight

__all__ = ["Target", "Targets"]


class Target:
    """One weight in a plugin's hands."""

    __slots__ = ("_first", "_layout", "site", "weight")

    def __init__(self, weight: Weight, site: Site) -> None:
        self.weight = weight
        self.site = site
        self._first = weight.raw[0]
        self._layout = weight.layout if unit_view(self._first, weight.layout) is not self._first else None

    @property
    def tensor(self) -> Tensor:
        """The raw parameter, every unit an index of one axis; written in place."""
        return self._first if self._layout is None else self.weight.units()

    @property
    def gradient(self) -> Tensor | None:
        """The raw parameter's gradient, seen alike."""
        gradient = self._first.grad
        return gradient if gradient is None or self._layout is None else unit_view(gradient, self._layout)

    def __iter__(self) -> Iterator[Any]:
        yield self.weight
        yield self.site

    @property
    def is_trained(self) -> bool:
        return self._first.requires_grad or self.weight.trainable


class Targets(tuple[Target, ...]):
    """Several weights. What does not change from update to update is found once: for many small weights, looking
    costs more than computing."""

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        return tuple(target.site for target in self)

    @cached_property
    def _raw(self) -> tuple[Tensor, ...]:
        return tuple(target._first for target in self)

    @cached_property
    def _are_raw(self) -> bool:
        return all(target._layout is None for target in self)

    @cached_property
    def plain(self) -> Targets:
        """Those that no parametrization computes."""
        return self._only(target for target in self if not target.weight.parametrized)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The raw parameters, as :attr:`Target.tensor`."""
        return self._raw if self._are_raw else tuple(target.tensor for target in self)

    @property
    def gradients(self) -> list[Any]:
        """Their gradients, as :attr:`Target.gradient`; ``None`` where there is none.

        Raises:
            UnsupportedWeightError: one is sparse.
        """
        found = [raw.grad for raw in self._raw]
        if any(map(_is_sparse, found)):
            self._refuse_sparse()
        return found if self._are_raw else [target.gradient for target in self]

    def _refuse_sparse(self) -> None:
        for target in self:
            if target.gradient is not None and target.gradient.is_sparse:
                raise UnsupportedWeightError(
                    f"weight {target.weight.name!r} got a sparse gradient: make its layer with sparse=False, "
                    "or leave it out with `where`"
                )

    @property
    def trained(self) -> Targets:
        """Those that are not frozen."""
        if all(map(_is_trained, self._raw)):
            return self
        return self._only(target for target in self if target.is_trained)

    def with_gradients(self) -> tuple[Targets, list[Tensor]]:
        """Those that have a gradient, and their gradients, as :attr:`gradients`."""
        found = self.gradients
        if not any(gradient is None for gradient in found):
            return self, found
        pairs = [(target, gradient) for target, gradient in zip(self, found, strict=True) if gradient is not None]
        return Targets(target for target, _ in pairs), [gradient for _, gradient in pairs]

    def drop_gradients(self) -> None:
        """Take the gradients away, so that the optimizer leaves the weights alone."""
        for raw in self._raw:
            raw.grad = None

    def _only(self, some: Iterable[Target]) -> Targets:
        chosen = Targets(some)
        return self if len(chosen) == len(self) else chosen


_is_trained = attrgetter("requires_grad")


def _is_sparse(gradient: Tensor | None) -> bool:
    return gradient is not None and gradient.is_sparse
