"""Arithmetic over many tensors at once, and the one place that says which axes make up a unit of a weight.

A *unit* is what computes one output: index 0 of a weight (a row of a linear layer, a filter of a convolution, one gate
of one LSTM cell, the vector of one embedded token). A transposed convolution keeps its outputs on axis 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

__all__ = [
    "accurate_dtype",
    "add_",
    "add_differences_",
    "add_signs_",
    "are_large",
    "blocks",
    "clamp_",
    "copy_",
    "divide_",
    "fans",
    "from_unit_matrices",
    "global_norm",
    "is_small",
    "joined",
    "keep_",
    "lerp_",
    "nonfinite_flag",
    "normalize_",
    "parted",
    "row_groups",
    "row_length",
    "scale_",
    "sign_",
    "unit_axis",
    "unit_dims",
    "unit_matrices",
    "unit_norms",
    "unit_peaks",
    "unit_view",
]


def unit_view(tensor: Tensor, module: nn.Module | None) -> Tensor:
    """A view of a weight (or of its gradient) in which every unit is an index of one axis.

    Only a grouped transposed convolution needs it: its weight, of shape ``(inputs, outputs / groups, *kernel)``, is
    seen as ``(groups, inputs / groups, outputs / groups, *kernel)``. Splitting an axis never copies.
    """
    if not isinstance(module, _ConvTransposeNd) or module.groups == 1:
        return tensor
    if tensor.ndim > 2 and not tensor.shape[0] % module.groups:  # else it is none of this module's
        groups: Tensor = tensor.unflatten(0, (module.groups, -1))  # type: ignore[no-untyped-call]
        return groups
    return tensor


def unit_dims(ndim: int, module: nn.Module | None = None) -> tuple[int, ...]:
    """The axes inside one unit of a weight with ``ndim`` axes (as :func:`unit_view` shows it) that ``module`` owns.

    A vector or a scalar is one unit as a whole, as in adaptive gradient clipping (Brock et al., 2021).

    >>> unit_dims(4)
    (1, 2, 3)
    >>> unit_dims(4, nn.ConvTranspose2d(2, 6, 3))
    (0, 2, 3)
    >>> unit_dims(5, nn.ConvTranspose2d(4, 6, 3, groups=2))
    (1, 3, 4)
    """
    if ndim < 2:
        return tuple(range(ndim))
    if isinstance(module, _ConvTransposeNd):
        return (1, *range(3, ndim)) if module.groups > 1 else (0, *range(2, ndim))
    return tuple(range(1, ndim))


def unit_axis(weight: Tensor, dims: tuple[int, ...]) -> int:
    """The last axis that is not inside a unit: the one that counts output units (within a group)."""
    outside = [axis for axis in range(weight.ndim) if axis not in dims]
    return outside[-1] if outside else 0


def fans(weight: Tensor, dims: tuple[int, ...]) -> tuple[int, int]:
    """``(fan_in, fan_out)``: how many values one output sums, and how many outputs one input reaches.

    For linear layers and convolutions this is what ``torch.nn.init`` computes; for transposed convolutions, whose
    fans ``torch.nn.init`` exchanges, it is what the layer does at stride 1.

    >>> fans(torch.empty(6, 3, 5, 5), (1, 2, 3))
    (75, 150)
    """
    fan_in = 1
    for axis in dims:
        fan_in *= weight.shape[axis]
    kernel = 1
    for axis in dims[1:]:
        kernel *= weight.shape[axis]
    return fan_in, weight.shape[unit_axis(weight, dims)] * kernel


def unit_matrices(weight: Tensor, dims: tuple[int, ...], gates: int = 1) -> Tensor:
    """The weight as matrices with units as rows, shape ``(gates, units per gate, values per unit)``: one matrix, or one
    for each gate of a recurrent layer. A vector is one row.

    >>> unit_matrices(torch.empty(6, 3, 5, 5), (1, 2, 3)).shape
    torch.Size([1, 6, 75])
    """
    size = math.prod(weight.shape[axis] for axis in dims)
    if dims and dims == tuple(range(1, weight.ndim)):
        return weight.reshape(gates, weight.shape[0] // gates, size)
    outside = [axis for axis in range(weight.ndim) if axis not in dims]
    parts = gates if outside else 1
    rows = math.prod(weight.shape[axis] for axis in outside) // parts
    return weight.permute([*outside, *dims]).reshape(parts, rows, size)


def from_unit_matrices(matrices: Tensor, like: Tensor, dims: tuple[int, ...]) -> Tensor:
    """What :func:`unit_matrices` took apart, in the shape and dtype of ``like``.

    >>> weight = torch.randn(2, 3, 4)
    >>> torch.equal(from_unit_matrices(unit_matrices(weight, (0, 2)), weight, (0, 2)), weight)
    True
    """
    if dims and dims == tuple(range(1, like.ndim)):
        return matrices.reshape(like.shape).to(like.dtype)
    axes = [axis for axis in range(like.ndim) if axis not in dims] + list(dims)
    places = sorted(range(like.ndim), key=axes.__getitem__)
    return matrices.reshape([like.shape[axis] for axis in axes]).permute(places).to(like.dtype)


def row_length(tensor: Tensor, dims: tuple[int, ...]) -> int:
    """How many values a unit has, where the units are the rows of a tensor; else 0.

    >>> row_length(torch.ones(2, 3, 5), (1, 2)), row_length(torch.ones(3), (0,)), row_length(torch.ones(2, 3), (0,))
    (15, 3, 0)
    """
    by_rows = dims == ((0,) if tensor.ndim == 1 else tuple(range(1, tensor.ndim)))
    return math.prod(tensor.shape[axis] for axis in dims) if dims and by_rows else 0


def row_groups(kinds: Sequence[object], least: int = 2) -> tuple[list[list[int]], list[int]]:
    """Which tensors may be the rows of one matrix, by what they must have in common: lists of their places, and the
    places of those that go alone, as those do that have ``None``, and where there are fewer than ``least``.

    What a small tensor costs is the call: one call on the rows of 50 is several times faster than 50 calls.

    >>> row_groups([3, 3, 2, None, None])
    ([[0, 1]], [2, 3, 4])
    """
    groups: dict[object, list[int]] = {}
    for place, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(place)
    alone = groups.pop(None, [])
    alone += [place for places in groups.values() if len(places) < least for place in places]
    return [places for places in groups.values() if len(places) >= least], sorted(alone)


def is_small(tensor: Tensor) -> bool:
    """Whether copying the tensor costs less than calling for it alone."""
    return 0 < tensor.numel() <= _SMALL


_SMALL = 2**15


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """The values of several tensors as one long row, on the first one's device.

    >>> joined([torch.ones(1, 2), torch.zeros(1)])
    tensor([1., 1., 0.])
    """
    device = tensors[0].device
    return torch.cat([t.reshape(-1) if t.device == device else t.reshape(-1).to(device) for t in tensors])


def parted(row: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """What :func:`joined` joined, each part in the shape, and on the device, of its tensor."""
    parts = torch.split(row, [tensor.numel() for tensor in tensors])
    return [
        part.view_as(tensor) if tensor.device == row.device else part.view_as(tensor).to(tensor.device)
        for part, tensor in zip(parts, tensors, strict=True)
    ]


def accurate_dtype(dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or float32 where sums in ``dtype`` would be too coarse (float16 and bfloat16)."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def unit_norms(weight: Tensor, dims: tuple[int, ...], order: float = 2.0) -> Tensor:
    """The norm of every unit, with the reduced axes kept; float32 for half precisions.

    >>> unit_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), (1,))
    tensor([[5.],
            [0.]])
    """
    if not dims:
        return weight.abs().to(accurate_dtype(weight.dtype))
    norms: Tensor = torch.linalg.vector_norm(weight, order, dim=dims, keepdim=True, dtype=accurate_dtype(weight.dtype))
    return norms


def unit_peaks(weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The largest magnitude in every unit, with the reduced axes kept; no gradient flows through it.

    >>> unit_peaks(torch.tensor([[3.0, -4.0], [0.0, 0.0]]), (1,))
    tensor([[4.],
            [0.]])
    """
    weight = weight.detach()
    if not dims or weight.is_complex() or not weight.numel():
        return weight.abs().amax(dim=dims, keepdim=True) if dims else weight.abs()
    return torch.maximum(weight.amax(dim=dims, keepdim=True), -weight.amin(dim=dims, keepdim=True))


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all tensors taken as one long vector; 0-d, on the first tensor's device.

    >>> global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    if any(accurate_dtype(tensor.dtype) != tensor.dtype for tensor in tensors):
        norms = [torch.linalg.vector_norm(tensor, dtype=accurate_dtype(tensor.dtype)) for tensor in tensors]
    else:
        norms = list(torch._foreach_norm(list(tensors), 2.0))
    together = torch.stack([norm.to(norms[0].device) for norm in norms])
    total: Tensor = torch.linalg.vector_norm(together)
    return total


def blocks(*tensors: Tensor, by_rows: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, cut alike into views so small that what is computed of one takes little memory; whole rows,
    if asked for.

    >>> [len(part) for (part,) in blocks(torch.zeros(2**18 + 1))]
    [262144, 1]
    """
    if tensors[0].numel() <= _BLOCK:
        return iter([tensors])
    if not by_rows and all(tensor.is_contiguous() for tensor in tensors):
        tensors = tuple(tensor.view(-1) for tensor in tensors)
    rows = max(1, _BLOCK // tensors[0][:1].numel())
    return zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)


_BLOCK = 2**18
"""Values of a block: as few as cost no time."""


def copy_(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write values in the tensors' place."""
    if tensors:
        torch._foreach_copy_(list(tensors), list(values))


def add_(tensors: Sequence[Tensor], others: Sequence[Tensor], factor: float = 1.0) -> None:
    """Add a multiple of another to every tensor, in place: t ← t + factor · o, rounded once where the processor can."""
    if tensors:
        torch._foreach_add_(list(tensors), list(others), alpha=factor)


def add_differences_(
    tensors: Sequence[Tensor],
    others: Sequence[Tensor],
    bases: Sequence[Tensor],
    factor: float,
    scales: Sequence[Tensor] | None = None,
) -> None:
    """Add a multiple of how far another is from its base to every tensor, in place, large ones with little memory:
    t ← t + factor · s · (o − b), with scales or without. Bases and scales may broadcast."""
    if tensors and not are_large(tensors):
        distances = torch._foreach_sub(list(others), list(bases))
        if scales is None:
            torch._foreach_add_(list(tensors), distances, alpha=factor)
        else:
            torch._foreach_addcmul_(list(tensors), list(scales), distances, value=factor)
        return
    columns = [tensors, others, bases] if scales is None else [tensors, others, bases, scales]
    for tensor, *rest in zip(*columns, strict=True):
        for part, other, base, *scale in blocks(tensor, *(each.expand_as(tensor) for each in rest)):
            off = other - base
            part.addcmul_(scale[0], off, value=factor) if scale else part.add_(off, alpha=factor)


def add_signs_(tensors: Sequence[Tensor], others: Sequence[Tensor], factor: float) -> None:
    """Add a multiple of another's signs to every tensor, in place, with little memory: t ← t + factor · sign(o)."""
    if tensors and not are_large(tensors):
        torch._foreach_add_(list(tensors), torch._foreach_sign(list(others)), alpha=factor)
        return
    for tensor, other in zip(tensors, others, strict=True):
        for part, values in blocks(tensor, other):
            part.add_(values.sign(), alpha=factor)


def scale_(tensors: Sequence[Tensor], factor: Tensor | float) -> None:
    """Multiply every tensor by ``factor`` in place (a 0-d tensor stays on its device: no synchronisation)."""
    if tensors:
        torch._foreach_mul_(list(tensors), factor)


def clamp_(tensors: Sequence[Tensor], low: float | None, high: float | None) -> None:
    """Bound every value of every tensor, in place."""
    values, count = sum(map(Tensor.numel, tensors)), len(tensors)
    is_worth_it = count <= _FEW_BOUNDED or values > _NEAR  # where there are two bounds
    if values > _SMALL * count or (is_worth_it and None not in (low, high) and all(t.is_cpu for t in tensors)):
        for tensor in tensors:
            tensor.clamp_(low, high)
        return
    for bound, clamp_all_ in ((low, torch._foreach_clamp_min_), (high, torch._foreach_clamp_max_)):
        if tensors and bound is not None:
            clamp_all_(list(tensors), bound)


_FEW_BOUNDED, _NEAR = 8, 2**18  # of so few tensors, or more values, a call each costs less than two for all


def keep_(tensor: Tensor, mask: Tensor) -> None:
    """Put 0 wherever ``mask`` is false, whatever stood there, in place.

    The bits are multiplied by 0 or 1: an infinity leaves no NaN, a negative number no −0, and it is several times as
    fast as ``masked_fill_``.

    >>> weight = torch.tensor([1.0, -torch.inf])
    >>> keep_(weight, torch.tensor([True, False]))
    >>> weight
    tensor([1., 0.])
    """
    if tensor.is_complex() or (tensor.requires_grad and torch.is_grad_enabled()):
        tensor.masked_fill_(~mask, 0)
        return
    for part, kept in blocks(tensor, mask):  # of which a whole copy would be made, as integers
        part.view(_BITS[part.element_size()]).mul_(kept)


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def are_large(tensors: Sequence[Tensor]) -> bool:
    """Whether another pass over the tensors costs more than another call for each."""
    return sum(map(Tensor.numel, tensors)) > _SMALL * len(tensors)


def sign_(tensors: Sequence[Tensor]) -> None:
    """Replace every value of every tensor by its sign, in place."""
    if tensors:
        torch._foreach_sign_(list(tensors))


def normalize_(tensors: Sequence[Tensor], norm: float) -> None:
    """Scale every tensor to an L2 norm, in place; zeros stay zero."""
    kinds = {(tensor.dtype, tensor.device) for tensor in tensors}
    if len(kinds) == 1 and not are_large(tensors) and all(accurate_dtype(dtype) == dtype for dtype, _ in kinds):
        lengths = torch.stack(torch._foreach_norm(list(tensors), 2.0))
        torch._foreach_mul_(list(tensors), torch.where(lengths == 0, 1.0, norm / lengths).unbind())
        return
    for tensor in tensors:  # a large one is still in the cache when it is scaled
        length = torch.linalg.vector_norm(tensor, dtype=accurate_dtype(tensor.dtype))
        tensor.mul_(torch.where(length == 0, 1.0, norm / length))


def divide_(tensors: Sequence[Tensor], divisor: float) -> None:
    """Divide every tensor by ``divisor`` in place."""
    if tensors:
        torch._foreach_div_(list(tensors), divisor)


def lerp_(tensors: Sequence[Tensor], targets: Sequence[Tensor], share: float) -> None:
    """Move every tensor by ``share`` of the way to its target, in place: t ← t + share · (target − t)."""
    if tensors:
        torch._foreach_lerp_(list(tensors), list(targets), share)


def nonfinite_flag(tensors: Sequence[Tensor], flag: Tensor) -> Tensor:
    """``flag``, set to 1 if any element is infinite or NaN. Nothing waits for the device.

    Reads every tensor once, by what torch's gradient scaler does, which is told to multiply by 1.

    Args:
        tensors: of any shape, dtype and device.
        flag: 0-d, float32.

    >>> nonfinite_flag([torch.tensor([1.0, math.inf])], torch.zeros(()))
    tensor(1.)
    """
    if all(t.dtype is torch.float32 and t.device == flag.device and _can_be_written(t) for t in tensors):
        torch._amp_foreach_non_finite_check_and_unscale_(list(tensors), flag, torch.ones((), device=flag.device))
        return flag
    given = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in tensors]
    finite = torch.stack([values.isfinite().all().to(flag.device) for values in given])
    return flag.copy_(torch.maximum(flag, (~finite.all()).to(flag)))


def _can_be_written(tensor: Tensor) -> bool:
    """Whether no two of its elements are one number in memory."""
    return not tensor.is_sparse and 0 not in tensor.stride()
