"""The weights in a plugin's hands, and what it needs of all of them at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from operator import attrgetter, is_not
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from weightsmith.errors import UnsupportedWeightError
from weightsmith.rows import Sites
from weightsmith.shards import Part, gather, is_sharded, own_part, put_back, spread
from weightsmith.site import Site
from weightsmith.tensors import unit_view
from weightsmith.weights import Weight

__all__ = ["Target", "Targets", "gathered"]


class Target:
    """One weight in a plugin's hands. Of a sharded one it is the part that this process holds."""

    __slots__ = ("_first", "_is_sharded", "_layout", "site", "weight")

    def __init__(self, weight: Weight, site: Site) -> None:
        self.weight = weight
        self.site = site
        self._first = weight.raw[0]
        self._is_sharded = is_sharded(self._first)
        is_as_it_is = self._is_sharded or unit_view(self._first, weight.layout) is self._first
        self._layout = None if is_as_it_is else weight.layout

    @property
    def tensor(self) -> Tensor:
        """The raw parameter, every unit an index of one axis; written in place."""
        if self._is_sharded:
            return own_part(self._first)
        return self._first if self._layout is None else self.weight.units()

    @property
    def gradient(self) -> Tensor | None:
        """The raw parameter's gradient, seen alike."""
        gradient = self._first.grad
        if gradient is None or (self._layout is None and not self._is_sharded):
            return gradient
        return own_part(gradient) if self._is_sharded else unit_view(gradient, self._layout)

    @property
    def effective(self) -> Tensor:
        """What the layer computes with, seen alike. Of a sharded weight that a parametrization computes it is the
        whole: then every process must ask."""
        if self._is_sharded and not self.weight.parametrized:
            return self.tensor
        return self.weight.effective_units()

    def own(self, whole: Tensor) -> Tensor:
        """What of a tensor of the weight's shape belongs to :attr:`tensor`."""
        return own_part(spread(whole, self._first)) if self.site._is_scattered else whole

    @property
    def part(self) -> Part | None:
        """Which part of the weight is in hand; ``None``: all of it."""
        return self.site._part

    @property
    def is_empty(self) -> bool:
        """Whether this process holds nothing of it."""
        return not (own_part(self._first) if self._is_sharded else self._first).numel()

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
    def sites(self) -> Sites:
        return Sites(target.site for target in self)

    @cached_property
    def _raw(self) -> tuple[Tensor, ...]:
        return tuple(target._first for target in self)

    @cached_property
    def _are_raw(self) -> bool:
        return all(target._layout is None and not target._is_sharded for target in self)

    @cached_property
    def plain(self) -> Targets:
        """Those that no parametrization computes."""
        return self._only(target for target in self if not target.weight.parametrized)

    @cached_property
    def parametrized(self) -> Targets:
        """The others."""
        return self._only(target for target in self if target.weight.parametrized)

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
        return self._found_gradients()[0]

    def start_gradients(self) -> list[Tensor]:
        """Give a gradient of zeros to those that have none; then :attr:`gradients`."""
        found, are_all_given = self._found_gradients()
        if are_all_given:
            return found
        for raw in self._raw:
            if raw.grad is None:
                raw.grad = torch.zeros_like(raw)
        return self.gradients

    def _found_gradients(self) -> tuple[list[Any], bool]:
        """:attr:`gradients`, raising alike, and whether there is one of every weight."""
        found, are_all_given = list(map(_gradient, self._raw)), True
        try:
            are_dense = not any(map(_is_sparse, found))
        except AttributeError:  # of None, asked for only here, as that takes as long as all else
            are_dense, are_all_given = not any(map(_is_sparse, filter(_is_given, found))), False
        if not are_dense:
            self._refuse_sparse()
        return (found if self._are_raw else [target.gradient for target in self]), are_all_given

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

    @cached_property
    def are_whole(self) -> bool:
        """Whether none is sharded."""
        return not any(target.site._is_scattered or target.part is not None for target in self)

    @cached_property
    def filled(self) -> Targets:
        """Those of which this process holds something."""
        return self._only(target for target in self if not target.is_empty)

    @cached_property
    def at_hand(self) -> Targets:
        """Those on which the plugin acts as they lie: all but those of :attr:`scattered`."""
        return self._only(target for target in self if not target.site._is_scattered)

    @cached_property
    def scattered(self) -> Targets:
        """Those sharded ones that the plugin needs whole."""
        return Targets(target for target in self if target.site._is_scattered)

    def with_gradients(self) -> tuple[Targets, list[Tensor]]:
        """Those that have a gradient, and their gradients, as :attr:`gradients`."""
        found, are_all_given = self._found_gradients()
        if are_all_given:
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


GradientNeed: TypeAlias = Literal["none", "given", "added"]
"""What of a gathered weight's gradient is wanted: nothing, unless somebody asks its site; the gradient, which may be
written; or room to add to it."""


@contextlib.contextmanager
def gathered(target: Target, writes: Iterable[str] = (), gradient: GradientNeed = "none") -> Iterator[Target]:
    """A scattered weight as a whole, for a while: what is written to it is written back at the end, each process its
    own part. Every process must take part.

    Args:
        target: the weight.
        writes: what to write back: ``"weight"``, ``"gradient"``.
        gradient: what of its gradient is wanted.
    """
    weight, site = target.weight, target.site
    pairs = [(raw, _stand_in(raw, gradient)) for raw in weight.raw]
    site._weight, site._home = replace(weight, raw=tuple(whole for _, whole in pairs), is_gathered=True), weight
    try:
        yield Target(site._weight, site)
        with torch.no_grad():
            for raw, whole in [(raw, whole) for raw, whole in pairs if whole is not raw]:
                if "weight" in writes:
                    put_back(raw, whole)
                if "gradient" in writes:
                    _put_gradient_back(raw, whole.grad, adds=gradient == "added")
    finally:
        site._weight, site._home = weight, None


def _stand_in(raw: Any, gradient: GradientNeed) -> Any:
    """A parameter with the whole value of a sharded one."""
    if not is_sharded(raw):
        return raw
    whole = torch.nn.Parameter(gather(raw.detach()), requires_grad=raw.requires_grad)
    if gradient == "added":
        whole.grad = torch.zeros_like(whole)
    elif gradient == "given" and raw.grad is not None:
        whole.grad = gather(raw.grad.detach())
    return whole


def _put_gradient_back(raw: Any, gradient: Tensor | None, *, adds: bool) -> None:
    if gradient is None:
        raw.grad = None
        return
    if raw.grad is None:
        raw.grad = torch.zeros_like(raw)
    if adds:
        own_part(raw.grad).add_(own_part(spread(gradient, raw)))
    else:
        put_back(raw.grad, gradient)


_is_trained, _gradient, _is_sparse = attrgetter("requires_grad"), attrgetter("grad"), attrgetter("is_sparse")
_is_given = partial(is_not, None)
