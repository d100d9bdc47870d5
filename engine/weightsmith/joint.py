"""What spans several weights, of which this process may hold parts alone: norms, and which values are largest.

Where all weights are whole nothing is sent; else a few numbers for each weight. Every process that holds a part must
ask, for the same weights in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from weightsmith.errors import UnsupportedWeightError
from weightsmith.ranking import largest
from weightsmith.shards import Part
from weightsmith.site import Site
from weightsmith.tensors import accurate_dtype, global_norm

__all__ = ["any_of_each", "joint_norm", "joint_norms", "largest_of_all", "size_of"]


def size_of(site: Site) -> int:
    """How many values the whole weight has."""
    return math.prod(site.shape)


def joint_norm(
    tensors: Sequence[Tensor], sites: Sequence[Site], norm_of: Callable[[Sequence[Tensor]], Tensor] = global_norm
) -> Tensor:
    """The L2 norm of all tensors taken as one long vector; 0-d. As :func:`~weightsmith.tensors.global_norm`.

    Args:
        tensors: of each weight what is in hand, or its gradient.
        sites: of the same weights.
        norm_of: finds the norm of what is in hand.
    """
    part = _part(sites)
    if part is None:
        return norm_of(tensors)
    here = [tensor for tensor, site in zip(tensors, sites, strict=True) if site._part is not None]
    whole = [tensor for tensor, site in zip(tensors, sites, strict=True) if site._part is None]
    norm = norm_of(here)
    square = part.total(norm.double().square())  # in float64, where no square of a float32 is lost
    return (square + norm_of(whole).double().square() if whole else square).sqrt().to(norm.dtype)


def joint_norms(tensors: Sequence[Tensor], sites: Sequence[Site]) -> Tensor:
    """The L2 norm of every tensor on its own, in one vector on the first one's device."""
    norms = [torch.linalg.vector_norm(tensor, dtype=accurate_dtype(tensor.dtype)) for tensor in tensors]
    together, part = torch.stack([norm.to(norms[0].device) for norm in norms]), _part(sites)
    if part is None:
        return together
    spanning = part.total(together.double().square()).sqrt().to(together.dtype)
    return torch.where(_are_sharded(sites, together.device), spanning, together)


def any_of_each(flags: Sequence[Tensor], sites: Sequence[Site]) -> Tensor:
    """For every weight whether it is so, in any of its parts; boolean, shape ``(weights,)``."""
    together, part = torch.stack(list(flags)), _part(sites)
    return together if part is None else part.most(together.to(torch.uint8)).bool()


def largest_of_all(scores: Tensor, sizes: Sequence[int], sites: Sequence[Site], count: int) -> Tensor:
    """Which ``count`` values are largest of all weights together, the first of equal ones; boolean, of the same shape.

    Exact. The least of the largest is found digit by digit, of its 4 bytes (8 in float64): for each, the processes add
    up how many of their values have which digit, 256 numbers. NaN counts as infinite. Equal ones count in the order of
    the weights and, in one, of its values, as they lie in memory where it is sharded along its first axis.

    Args:
        scores: of each weight what is in hand, one after the other in one row.
        sizes: how many of each.
        sites: of the same weights.
        count: how many.
    """
    part = _part(sites)
    if part is None:
        return largest(scores.unsqueeze(0), count)[0]
    if not 0 < count < sum(map(size_of, sites)):
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    keys = _ordered(scores)
    is_counted = _counted_here(sizes, sites, part, scores.device)
    least, room = _least_of_largest(keys[is_counted], count, part)
    equal = keys == least
    before = _equal_before(equal, sizes, sites, part)
    kept = keys > least
    for some, found, first in zip(_split(equal, sizes), _split(kept, sizes), before, strict=True):
        if some.any():
            found |= some & (some.cumsum(0) <= room - first)
    return kept


def _part(sites: Sequence[Site]) -> Part | None:
    """A part that stands for the processes among which weights are shared out; ``None`` if all are whole."""
    parts = [site._part for site in sites if site._part is not None]
    if any(part.group != parts[0].group for part in parts):
        raise UnsupportedWeightError(
            "weights are sharded over different groups of processes, so nothing can be found for all of them together: "
            "shard them over one mesh, or give each group a plugin of its own with `where`"
        )
    return parts[0] if parts else None


def _are_sharded(sites: Sequence[Site], device: torch.device) -> Tensor:
    return torch.tensor([site._part is not None for site in sites], device=device)


def _ordered(scores: Tensor) -> Tensor:
    """Whole numbers in the order of the scores: the bits, those below the sign turned over where it is negative."""
    accurate = scores.detach().nan_to_num(torch.inf, torch.inf, -torch.inf).to(accurate_dtype(scores.dtype)) + 0.0
    bits = accurate.view(torch.int64 if accurate.dtype is torch.float64 else torch.int32)
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)


def _counted_here(sizes: Sequence[int], sites: Sequence[Site], part: Part, device: torch.device) -> Tensor:
    """Which values this process counts: all of its parts, and whole weights on the first process alone."""
    is_first = dist.get_rank(part.group) == 0
    counts = [site._part is not None or is_first for site in sites]
    return torch.repeat_interleave(torch.tensor(counts, device=device), torch.tensor(list(sizes), device=device))


def _least_of_largest(keys: Tensor, count: int, part: Part) -> tuple[Tensor, int]:
    """The ``count``-th largest key of all processes, and how many that are equal to it are among the largest."""
    left, room, least = keys, count, 0
    bits = torch.iinfo(keys.dtype).bits
    for shift in range(bits - 8, -1, -8):
        is_top = shift == bits - 8
        digits = (left >> shift) + 128 if is_top else (left >> shift) & 255
        found = part.total(torch.bincount(digits.long(), minlength=256)).flip(0).cumsum(0)
        place = int(torch.searchsorted(found, room))  # of the digits from the largest down
        room -= int(found[place - 1]) if place else 0
        left = left[digits == 255 - place]
        least += (255 - place - 128 if is_top else 255 - place) << shift
    return torch.tensor(least, dtype=keys.dtype, device=keys.device), room


def _equal_before(equal: Tensor, sizes: Sequence[int], sites: Sequence[Site], part: Part) -> list[int]:
    """Of each weight, how many equal values come before the first that is in hand."""
    own = torch.stack([some.sum() for some in _split(equal, sizes)])
    processes = dist.get_world_size(part.group)
    all_counts = [torch.empty_like(own) for _ in range(processes)]
    dist.all_gather(all_counts, own, group=part.group)
    me, before, found = dist.get_rank(part.group), 0, []
    for site, counts in zip(sites, torch.stack(all_counts).T.tolist(), strict=True):
        is_sharded = site._part is not None
        found.append(before + (sum(counts[:me]) if is_sharded else 0))
        before += sum(counts) if is_sharded else counts[0]
    return found


def _split(row: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    return torch.split(row, list(sizes))
