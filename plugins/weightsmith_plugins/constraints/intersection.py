"""Several sets at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from weightsmith import ConfigurationError, ConflictError, Constraint, Site

__all__ = ["Intersection"]


class Intersection(Constraint):
    """The weight is in all of several sets: ``Intersection(NonNegative(), MaxNorm(1.0))``.

    If all sets are convex, by Dykstra's algorithm, which finds the nearest common point: w ← P_i(w + p_i), where p_i is
    what the last projection on set i took away (Boyle & Dykstra, 1986; Bauschke & Combettes, 2011, section 30.2). If
    one is not (unit norms, sparsity, grids), by projecting on one after another until nothing changes: a common point
    near the weight, not always the nearest, if that finds one.

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

    def project(self, weight: Tensor, site: Site) -> Tensor:
        found = self._nearest(weight, site)
        if weight.isfinite().all() and not self._is_convex() and not self._holds(found, site):
            found = self._nearest(_nudged(weight), site)  # off the one point from which all ways look alike
        if weight.isfinite().all() and not self._holds(found, site):
            reason = "have no common point" if self._is_convex() else "were found to have no common point near it"
            raise ConflictError(
                f"{self!r}: the sets {' and '.join(map(repr, self.constraints))} {reason}, for weight {site.name!r}"
            )
        return found

    def violation(self, weight: Tensor, site: Site) -> Tensor:
        """The largest of the sets'."""
        return torch.stack([part.violation(weight, site) for part in self.constraints]).amax()

    def tolerance(self, projected: Tensor, site: Site) -> Tensor | float:
        """That of the widest set, with room for what the last rounds of projecting move."""
        widest = super().tolerance(projected, site)
        for part in self.constraints:
            widest = torch.maximum(torch.as_tensor(widest), torch.as_tensor(part.tolerance(projected, site)))
        return 4 * widest

    def _is_convex(self) -> bool:
        return all(part.convex for part in self.constraints)

    def _nearest(self, weight: Tensor, site: Site) -> Tensor:
        if self._holds(weight, site):
            return weight.clone()
        found = weight.double()
        taken = [torch.zeros_like(found) for _ in self.constraints]
        for _ in range(_MOST_ROUNDS):
            before = found
            for place, part in enumerate(self.constraints):
                shifted = found + taken[place] if self._is_convex() else found
                found = part.project(shifted, site)
                taken[place] = shifted - found
            if (found - before).abs().amax() <= 1e-9 * (1 + found.abs().amax()) and self._holds(found, site, slack=64):
                break
        return self._settled(found.to(weight.dtype), site)

    def _settled(self, found: Tensor, site: Site) -> Tensor:
        """The same point, with the rounding to the weight's dtype projected away."""
        for _ in range(_MOST_ROUNDS):
            if self._holds(found, site):
                break
            for part in self.constraints:
                found = part.project(found, site)
        return found

    def _holds(self, weight: Tensor, site: Site, slack: float = 1.0) -> bool:
        """Whether it is in all the sets, to within the widest tolerance."""
        widest = self.tolerance(weight, site)
        return all(
            bool(((part.project(weight, site) - weight).abs() <= slack * widest).all()) for part in self.constraints
        )


def _nudged(weight: Tensor) -> Tensor:
    slope = torch.linspace(-1, 1, weight.numel(), dtype=weight.dtype, device=weight.device).reshape(weight.shape)
    return weight + slope * 1e-3 * weight.abs().amax().clamp(min=1e-3)


_MOST_ROUNDS = 2000
