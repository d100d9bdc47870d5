"""Several sets at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from weightsmith import ConfigurationError, ConflictError, Constraint, Site
from weightsmith.tensors import blocks, row_length, unit_peaks

from weightsmith_plugins.constraints.bounds import Clamp, NonNegative
from weightsmith_plugins.constraints.discrete import Grid, NofM, TopK
from weightsmith_plugins.constraints.subspaces import LowerTriangular

__all__ = ["Intersection"]


class Intersection(Constraint):
    """The weight is in all of several sets: ``Intersection(NonNegative(), MaxNorm(1.0))``.

    If all sets are convex, by Dykstra's algorithm, which finds the nearest common point: w ← P_i(w + p_i), where p_i is
    what the last projection on set i took away (Boyle & Dykstra, 1986; Bauschke & Combettes, 2011, section 30.2). If
    one is not (unit norms, sparsity, grids), by projecting on one after another until nothing changes: a common point
    near the weight, not always the nearest, if that finds one. Its projection goes through many rounds, whose gradient
    nobody has use for: ``mode="forward"`` is refused.

    Args:
        constraints: two constraints or more, of which none remembers anything; their own ``where``, ``every``, ``mode``
            and the like stay at their defaults.

    Raises:
        ConflictError: the sets have no common point that projecting finds; before the first batch, naming the weight.

    >>> from weightsmith_plugins import Clamp, MaxNorm
    >>> Intersection(Clamp(low=0.5), MaxNorm(1.0))(torch.tensor([[3.0, 0.0]]))
    tensor([[0.8660, 0.5000]])
    """

    gathers: ClassVar[str | None] = "constraints"
    forward_gradient: ClassVar[Literal["autograd", "straight-through", "none"]] = "none"

    constraints: tuple[Constraint, ...]

    if TYPE_CHECKING:

        def __init__(self, *constraints: Constraint, **settings: Any) -> None: ...

    def validate(self) -> None:
        if len(self.constraints) < 2 or not all(isinstance(part, Constraint) for part in self.constraints):
            raise ConfigurationError(f"{self!r}: give two constraints or more")
        for part in self.constraints:
            own = (part.every, part.after, part.before, part.at, part.mode, part.momentum)
            if own != (1, 0, None, None, "project", "keep") or part.where != type(part).default_where:
                raise ConfigurationError(f"{self!r}: where, every, mode and the like belong to the Intersection")
            if type(part).init is not Constraint.init:
                raise ConfigurationError(f"{self!r}: {part!r} remembers, which no part of an Intersection can")

    def misfit(self, weight: Tensor, site: Site) -> str:
        return next(filter(None, (part.misfit(weight, site) for part in self.constraints)), "")

    @property
    def unitwise(self) -> bool:  # type: ignore[override]
        """Where all sets are."""
        return all(part.unitwise for part in self.constraints)

    def project(self, weight: Tensor, site: Site) -> Tensor:
        """Units some at a time, of a large weight, so that they stay in the processor's cache through all rounds."""
        are_rows = weight.is_cpu and weight.ndim > 1 and row_length(weight, site.unit_dims) > 0
        if not (self.unitwise and are_rows):
            return self._project_together(weight, site)
        found = [self._project_together(rows, site) for (rows,) in blocks(weight, by_rows=True)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _project_together(self, weight: Tensor, site: Site) -> Tensor:
        if bool(weight.sum().isfinite()) or bool(weight.isfinite().all()):
            return self._project(weight, site)
        once = weight  # where a value is not finite, nothing converges
        for part in self.constraints:
            once = _projected(part, once, site)
        if not (self.unitwise and site.unit_dims):
            return once
        finite = weight.isfinite().all(dim=site.unit_dims, keepdim=True)
        return torch.where(finite, self._project(weight.masked_fill(~finite, 0), site), once)

    def _project(self, weight: Tensor, site: Site) -> Tensor:
        at_once = self._nearest_at_once(weight, site) if self._is_convex() else None
        if at_once is not None:
            return at_once
        found = self._nearest(weight, site)
        if not self._is_convex() and not self._holds(found, site):
            found = self._nearest(_nudged(weight), site)  # off the one point from which all ways look alike
        if not self._holds(found, site):
            reason = "have no common point" if self._is_convex() else "were found to have no common point near it"
            raise ConflictError(
                f"{self!r}: the sets {' and '.join(map(repr, self.constraints))} {reason}, for weight {site.name!r}"
            )
        return found

    def violation(self, weight: Tensor, site: Site) -> Tensor:
        """The largest of the sets'."""
        return torch.stack([part.violation(weight, site) for part in self.constraints]).amax()

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0  # each set has its own, by which a common point is known

    def _is_convex(self) -> bool:
        return all(part.convex for part in self.constraints)

    def _nearest_at_once(self, weight: Tensor, site: Site) -> Tensor | None:
        """The nearest common point, if one round finds it. w = x + Σ p_i, P_i(x + p_i) = x for every set is all that it
        takes; bit for bit, so that nothing but the rounding of sums is left. Of the last set it is true anyway."""
        found, taken = weight, []
        for part in self.constraints:
            projected = _projected(part, found, site)
            taken.append(found - projected)
            found = projected
        for part, away in list(zip(self.constraints, taken, strict=True))[:-1]:
            if not torch.equal(_projected(part, found + away, site), found):
                return None
        return found

    def _nearest(self, weight: Tensor, site: Site) -> Tensor:
        if self._holds(weight, site):
            return weight.clone()
        scale = unit_peaks(weight, site.unit_dims)
        found = weight.double()
        taken = [torch.zeros_like(found) for _ in self.constraints]
        for _ in range(_MOST_ROUNDS):
            before = found
            for place, part in enumerate(self.constraints):
                shifted = found + taken[place] if self._is_convex() else found
                found = _projected(part, shifted, site)
                taken[place] = shifted - found
            still = bool(((found - before).abs() <= 1e-9 * scale).all())
            if still and self._settled(found.to(weight.dtype), site, 1) is not None:
                break
        found = found.to(weight.dtype)
        settled = self._settled(found, site, _MOST_ROUNDS)
        if settled is None:  # what shrinks without end is on its way to 0
            settled = self._settled(found.masked_fill(found.abs() <= torch.finfo(found.dtype).eps * scale, 0), site, 1)
        return found if settled is None else settled

    def _settled(self, found: Tensor, site: Site, rounds: int) -> Tensor | None:
        """The same point, with the rounding to the weight's dtype projected away, those sets last that take none."""
        for _ in range(rounds):
            if self._holds(found, site):
                return found
            for part in sorted(self.constraints, key=lambda part: isinstance(part, _EXACT)):
                found = _projected(part, found, site)
        return found if self._holds(found, site) else None

    def _holds(self, weight: Tensor, site: Site) -> bool:
        """Whether it is in all the sets, each to within its own tolerance."""
        return all(torch.equal(_projected(part, weight, site), weight) for part in self.constraints)


@torch.no_grad()
def _projected(part: Constraint, weight: Tensor, site: Site) -> Tensor:
    """As at an update: what is inside, to within the set's tolerance, stays bit for bit."""
    found = weight.clone()
    part.project_all_([found], [site])
    return found


def _nudged(weight: Tensor) -> Tensor:
    slope = torch.linspace(-1, 1, weight.numel(), dtype=weight.dtype, device=weight.device).reshape(weight.shape)
    return weight + slope * 1e-3 * weight.abs().amax().clamp(min=1e-3)


_EXACT = (Clamp, NonNegative, LowerTriangular, TopK, NofM, Grid)
"""Sets that leave no room for rounding."""

_MOST_ROUNDS = 2000
