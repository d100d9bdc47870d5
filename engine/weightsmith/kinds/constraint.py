"""Constraint: the set that a weight is kept in."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from ignite.engine.events import EventEnum
from torch import Tensor, nn

from weightsmith.binding import Binding
from weightsmith.errors import ConfigurationError, UnsupportedWeightError
from weightsmith.events import WeightEvents
from weightsmith.kinds.base import WeightPlugin, without_gradients
from weightsmith.plugin import Subscription
from weightsmith.rows import SiteOfRows
from weightsmith.selection import Selector, matrices
from weightsmith.site import Site
from weightsmith.targets import Target, Targets
from weightsmith.tensors import accurate_dtype, blocks, row_length, unit_peaks
from weightsmith.weights import Weight

if TYPE_CHECKING:
    from weightsmith.trainer import Trainer

__all__ = ["Constraint"]


class Constraint(WeightPlugin, abstract=True):
    """Keeps a weight inside a set. Has the last word on every update, and at the start.

    Args:
        mode: ``"project"`` (default) moves the weight into the set after every update. ``"forward"`` leaves the raw
            parameter free and lets the layer compute with its projection, so that gradients flow through it.
        momentum: ``"keep"`` (default) leaves the optimizer's momentum alone. ``"tangent"``, where defined, takes from
            it, after every update, the part along which the weight would leave the set.
    """

    event: ClassVar[EventEnum] = WeightEvents.WEIGHTS_EDITED
    derived: ClassVar[Mapping[str, Sequence[str]]] = {"project": ("project_all_", "unitwise", "sharding")}
    order: ClassVar[int] = 50
    default_where: ClassVar[Selector] = matrices
    acts_on_frozen: ClassVar[bool] = True
    sees_effective_weights: ClassVar[bool] = True
    forward_gradient: ClassVar[Literal["autograd", "straight-through", "none"]] = "autograd"
    """How ``mode="forward"`` differentiates the projection: exactly, as if it were the identity, or not at all
    (then that mode is refused)."""

    convex: ClassVar[bool] = False
    """Whether the set is convex, and :meth:`project` gives its nearest point: an intersection relies on it."""

    puts_zeros: ClassVar[bool] = False
    """Whether it does nothing but put zeros: then it may share a weight with a constraint that :attr:`allows_zeros`."""

    @property
    def allows_zeros(self) -> bool:
        """Whether any values of a point of the set may be put to 0, and projecting a weight leaves its zeros 0."""
        return False

    mode: Literal["project", "forward"] = field(default="project", kw_only=True)
    momentum: Literal["keep", "tangent"] = field(default="keep", kw_only=True)

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({"weight"})

    @abstractmethod
    def project(self, weight: Tensor, site: Site) -> Tensor:
        """The point of the set to use in place of ``weight``: the nearest, where one is known. Projecting it again
        must change nothing beyond rounding."""

    def violation(self, weight: Tensor, site: Site) -> Tensor:
        """How far outside the set the weight is, 0-d; by default the largest |project(w) − w|."""
        projected: Tensor = self._ask(self.project, weight, site=site)
        off = (projected - weight).abs()
        return off.amax() if off.numel() else off.new_zeros(())

    def tolerance(self, projected: Tensor, site: Site) -> Tensor | float:
        """The |project(w) − w| up to which a value counts as inside; broadcasts over the weight.

        By default 4 units of rounding (1 in half precisions, which are computed in float32) at the largest value of the
        projected unit. A projection that gives units inside the set back bit for bit, such as clamping, says 0.0, and
        is written without a look at what it moved.
        """
        tiny, rounding, _ = _limits(projected.dtype)
        return unit_peaks(projected, site.unit_dims).clamp(min=tiny) * rounding

    def tangent(self, velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
        """``velocity``, in which the weight of the set would move, without the part that leaves the set; same shape.
        Override where it is known.

        Raises:
            NotImplementedError: the set has none; ``momentum="tangent"`` is then refused when it is attached.
        """
        raise NotImplementedError(f"{type(self).__name__} has no tangent form")

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        """The plural form, in place. A weight inside the set stays bit for bit as it is."""
        self._unitwise(self.project, self._move, weights, sites, weights)

    def _move(self, weight: Tensor, projected: Tensor, site: Site) -> None:
        """Write a projection in the place of a weight that is outside; of several in one matrix, in that of units."""
        is_one = not isinstance(site, SiteOfRows)
        if is_one and weight.is_cpu and type(self).tolerance is Constraint.tolerance:
            if self._is_moved(weight, projected, site):
                weight.copy_(projected)
            return
        tolerance = self.tolerance(projected, site)
        if not isinstance(tolerance, Tensor) and tolerance == 0:
            weight.copy_(projected)
            return
        moved = ~_are_within(weight, projected, tolerance, site.unit_dims)
        if is_one:
            moved = moved.any()
        if not weight.is_cpu:  # nothing waits to know
            weight.copy_(torch.where(moved, projected, weight))
        elif moved.all():
            weight.copy_(projected)
        elif moved.any():
            places = moved.flatten().nonzero().flatten()
            weight.index_copy_(0, places, projected.index_select(0, places).to(weight.dtype))

    def _is_moved(self, weight: Tensor, projected: Tensor, site: Site) -> bool:
        """Whether a value moves by more than the default tolerance: mostly told by few of them."""
        if not weight.numel():
            return False
        length = row_length(weight, site.unit_dims) if weight.numel() > _FEW and weight.ndim > 1 else 0
        are_rows = 0 < length <= _FEW  # of which a block tells the largest tolerance
        of_all = None if are_rows else _largest_tolerance(projected)
        is_same = True
        for new, old in _blocks_of_rows(projected, weight, length) if are_rows else blocks(projected, weight):
            off = _peak(new - old)
            if off and off > (_largest_tolerance(new) if of_all is None else of_all):
                return True
            is_same = is_same and off == 0
        if is_same:
            return False
        return not bool(_are_within(weight, projected, self.tolerance(projected, site), site.unit_dims).all())

    def holds(self, weight: Tensor, site: Site) -> bool:
        """Whether the weight is in the set, to within the tolerance. NaN never is."""
        if self._is_idle(weight):
            return True
        projected = self._ask(self.project, weight, site=site)
        return bool(_are_within(weight, projected, self.tolerance(projected, site), site.unit_dims).all())

    def _without_padding(self, weight: Tensor, site: Site) -> Tensor:
        """The units that stand for something: an embedding's vector of padding is none, and is left alone."""
        padding = _padding(site)
        if padding is None or self.remembers or not 0 <= padding < len(weight):
            return weight
        return torch.cat([weight[:padding], weight[padding + 1 :]])

    def _without_paddings(self, targets: Targets) -> list[Tensor]:
        return [self._without_padding(target.tensor, target.site) for target in targets]

    def _restore_paddings(self, targets: Targets, weights: Sequence[Tensor]) -> None:
        """Write back what :meth:`_without_paddings` copied."""
        for target, weight in zip(targets, weights, strict=True):
            padding = _padding(target.site)
            if padding is not None and 0 <= padding < len(target.tensor):
                target.tensor[:padding] = weight[:padding]
                target.tensor[padding + 1 :] = weight[padding:]

    def measured_violation(self, weight: Tensor, site: Site) -> float:
        """:meth:`violation`, but 0.0 for a weight that is inside to within the tolerance; of a sharded one, of all
        parts: every process must ask."""
        weight = self._without_padding(weight, site)
        is_outside = torch.tensor(0 if self.holds(weight, site) else 1, device=weight.device)
        if not site.most(is_outside):
            return 0.0
        measured = weight.new_zeros(()) if self._is_idle(weight) else self.violation(weight, site)
        return float(site.most(measured))

    def _is_idle(self, weight: Tensor) -> bool:
        """Whether nothing of the weight is here, and no other process asks for anything."""
        return not weight.numel() and not self.acts_jointly

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding = trainer.bind(self)
        if self.mode == "project":
            yield self.at or self.event, binding.run
            return
        binding.layers.compute_with(_project_forward, _keep)

    def refuse(self, weights: Sequence[Weight]) -> None:
        if self.momentum == "tangent" and (self.mode == "forward" or type(self).tangent is Constraint.tangent):
            raise ConfigurationError(
                f"{self!r}: momentum='tangent' is for mode='project' and for sets whose tangents are known, such as "
                "MaxNorm's: use momentum='keep'"
            )
        if self.mode == "forward" and (self.limits() or self.at):
            raise ConfigurationError(
                f"{self!r}: with mode='forward' a layer computes with the projection in every forward pass: leave out "
                "every, after, before and at, and attach and detach it when it is to begin and end"
            )
        if self.mode == "forward" and self.forward_gradient == "none":
            raise ConfigurationError(f"{self!r}: its projection has no useful gradient; use mode='project'")
        for weight in weights:
            if self.mode == "project" and weight.parametrized:
                instead = "use mode='forward', or " if self.forward_gradient != "none" else ""
                raise UnsupportedWeightError(
                    f"{self!r}: weight {weight.name!r} is parametrized, so projecting its raw parameter would not "
                    f"bound what the layer computes with: {instead}leave it out with `where`"
                )

    @without_gradients
    def act(self, binding: Binding) -> None:
        for targets in binding.rounds():
            self._prepare(targets)
            self._project_units(binding, targets)
            for target in targets if self.momentum == "tangent" else ():
                binding.edit_momenta(target, functools.partial(self._without_outward, target))

    def _project_units(self, binding: Binding, targets: Targets) -> None:
        """All of these weights but paddings."""
        padded = [] if self.remembers else binding.once(_padded)
        weights = self._without_paddings(targets) if padded else targets.tensors
        self.project_all_(weights, targets.sites)
        if padded:
            self._restore_paddings(targets, weights)

    def _without_outward(self, target: Target, momentum: Tensor) -> Tensor:
        """A momentum, against which the optimizer moves the weight, without the part that leaves the set."""
        return -self.tangent(-momentum, target.tensor, target.site)

    @torch.no_grad()
    def enforce(self, binding: Binding, targets: Sequence[Target]) -> None:
        """Put what stands in these weights' place for a while (an average) into the set, if the constraint is in force
        now. Neither the plugin's memory nor the optimizer's changes."""
        if not binding.is_in_force():
            return
        for some in binding.rounds(Targets(targets)):
            memories = [{name: entry.clone() for name, entry in site.state.items()} for site in some.sites]
            self._prepare(some)
            try:
                self._project_units(binding, some)
            finally:
                for site, memory in zip(some.sites, memories, strict=True):
                    site._forget()
                    site._begin(memory)

    def __call__(self, weight: Tensor, *, site: Site | None = None) -> Tensor:
        """The projected weight, outside a trainer; differentiable where the projection is."""
        projected: Tensor = self._call("project", [weight], site)
        return projected


def _padding(site: Site) -> int | None:
    """The index of the padding among those in hand, which may be below 0 or beyond them; ``None`` if there is none."""
    padding = site.module.padding_idx if isinstance(site.module, nn.Embedding) else None
    return padding if padding is None or site._part is None else padding - site._part.start


def _padded(weights: Sequence[Weight]) -> list[Weight]:
    return [w for w in weights if isinstance(w.module, nn.Embedding) and w.module.padding_idx is not None]


@functools.cache
def _limits(dtype: torch.dtype) -> tuple[float, float, float]:
    """The smallest normal number, the rounding of a projection relative to the largest value of a unit, and the
    smallest number of all."""
    limits = torch.finfo(dtype)
    return limits.tiny, (1 if accurate_dtype(dtype) != dtype else 4) * limits.eps, limits.tiny * limits.eps


def _largest_tolerance(projected: Tensor) -> float:
    """Of the default ones of its units."""
    tiny, rounding, least = _limits(projected.dtype)
    return max(_peak(projected), tiny) * rounding + least  # as it is rounded, where it is subnormal


def _peak(values: Tensor) -> float:
    """The largest magnitude; NaN if there is one."""
    if values.is_complex():
        return float(values.abs().amax().item())
    least, most = torch.aminmax(values)
    return float(max(-least.item(), most.item()))


def _blocks_of_rows(projected: Tensor, weight: Tensor, length: int) -> Iterator[tuple[Tensor, ...]]:
    """As :func:`~weightsmith.tensors.blocks`, whole rows of so many values: first a few, which mostly tell enough."""
    few = min(len(weight) - 1, _FEW // length)
    yield projected[:few], weight[:few]
    yield from blocks(projected[few:], weight[few:], by_rows=True)


_FEW = 2**15
"""Values: of a weight that has more, to look at so many of them first saves more than it costs."""


def _are_within(weight: Tensor, projected: Tensor, tolerance: Tensor | float, dims: tuple[int, ...]) -> Tensor:
    """Whether a projection moves each unit by no more than the tolerance, with the axes inside a unit kept."""
    if not weight.numel():
        return torch.ones((), dtype=torch.bool, device=weight.device)
    if dims and dims == tuple(range(1, weight.ndim)):  # rows
        peaks = torch.cat([unit_peaks(new - old, dims) for new, old in blocks(projected, weight, by_rows=True)])
    else:
        peaks = unit_peaks(projected - weight, dims)
    if not isinstance(tolerance, Tensor) or tolerance.numel() == 1 or tolerance.shape == peaks.shape:
        return peaks <= tolerance  # many times as fast as to compare every value
    within = (projected - weight).abs() <= tolerance
    return within.all(dim=dims, keepdim=True) if dims else within


def _project_forward(plugin: Any, weight: Tensor, site: Site, *, remember: bool = False) -> Tensor:
    projected: Tensor = plugin._ask(plugin.project, weight, site=site)
    if plugin.forward_gradient == "straight-through":
        return weight + (projected - weight).detach()
    return projected


def _keep(plugin: Any, value: Tensor, site: Site) -> Tensor:
    """The right inverse of a projection: a value is its own raw parameter, so nothing pretrained is lost."""
    return value
