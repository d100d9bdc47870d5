"""Arithmetic over many tensors at once, and the one place that says which axes make up a unit of a weight.

A *unit* is what computes one output: index 0 of a weight (a row of a linear layer, a filter of a convolution, one gate
of one LSTM cell, the vector of one embedded token). A transposed convolution keeps its outputs on axis 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

__all__ = [
    "accurate_dtype",
    "divide_",
    "fans",
    "from_unit_matrices",
    "gates",
    "global_norm",
    "largest",
    "lerp_",
    "scale_",
    "top_singular_vectors",
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
    outside = [axis for axis in range(weight.ndim) if axis not in dims]
    rows = math.prod(weight.shape[axis] for axis in outside)
    return weight.permute([*outside, *dims]).reshape(gates if outside else 1, -1, weight.numel() // rows)


def from_unit_matrices(matrices: Tensor, like: Tensor, dims: tuple[int, ...]) -> Tensor:
    """What :func:`unit_matrices` took apart, in the shape and dtype of ``like``.

    >>> weight = torch.randn(2, 3, 4)
    >>> torch.equal(from_unit_matrices(unit_matrices(weight, (0, 2)), weight, (0, 2)), weight)
    True
    """
    axes = [axis for axis in range(like.ndim) if axis not in dims] + list(dims)
    places = sorted(range(like.ndim), key=axes.__getitem__)
    return matrices.reshape([like.shape[axis] for axis in axes]).permute(places).to(like.dtype)


def accurate_dtype(dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or float32 where sums in ``dtype`` would be too coarse (float16 and bfloat16)."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def largest(rows: Tensor, count: int) -> Tensor:
    """Which ``count`` values of every row are largest, the first of equal ones; boolean, of the same shape.

    >>> largest(torch.tensor([[1.0, 3.0, 1.0], [2.0, 0.0, 5.0]]), 2)
    tensor([[ True,  True, False],
            [ True, False,  True]])
    """
    size = rows.shape[1]
    if not 0 < count < size:
        return torch.full_like(rows, count >= size, dtype=torch.bool)
    rows = rows.to(accurate_dtype(rows.dtype))
    least = rows.kthvalue(size - count + 1, dim=1, keepdim=True).values
    above, equal = rows > least, rows == least
    room = count - above.sum(dim=1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=1) <= room))


def top_singular_vectors(matrices: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The left and right singular vectors of σ₁, one step of power iteration (v ← WᵀWv / ‖WᵀWv‖) on from ``right``.

    >>> left, right = top_singular_vectors(torch.diag(torch.tensor([3.0, 1.0])), torch.tensor([1.0, 0.0]))
    >>> left, right
    (tensor([1., 0.]), tensor([1., 0.]))
    """
    right = right.to(matrices.dtype)
    turned = (matrices.mT @ (matrices @ right.unsqueeze(-1))).squeeze(-1)
    right = _normalized(turned, right)
    image = (matrices @ right.unsqueeze(-1)).squeeze(-1)
    return _normalized(image, torch.zeros_like(image)), right


def _normalized(vectors: Tensor, otherwise: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(norms > 0, vectors / torch.where(norms > 0, norms, 1), otherwise)


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
    return weight.detach().abs().amax(dim=dims, keepdim=True) if dims else weight.detach().abs()


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


def scale_(tensors: Sequence[Tensor], factor: Tensor | float) -> None:
    """Multiply every tensor by ``factor`` in place (a 0-d tensor stays on its device: no synchronisation)."""
    if tensors:
        torch._foreach_mul_(list(tensors), factor)


def divide_(tensors: Sequence[Tensor], divisor: float) -> None:
    """Divide every tensor by ``divisor`` in place."""
    if tensors:
        torch._foreach_div_(list(tensors), divisor)


def lerp_(tensors: Sequence[Tensor], targets: Sequence[Tensor], share: float) -> None:
    """Move every tensor by ``share`` of the way to its target, in place: t ← t + share · (target − t)."""
    if tensors:
        torch._foreach_lerp_(list(tensors), list(targets), share)


_GATES: dict[type[nn.Module], int] = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}


def gates(module: nn.Module | None, leaf: str = "weight") -> int:
    """Into how many equal blocks along axis 0 a weight of a module falls: the gates of a recurrent layer, else 1 (as
    for an LSTM's projection, ``weight_hr_l0``).

    >>> gates(nn.LSTM(2, 3)), gates(nn.Linear(2, 3))
    (4, 1)
    """
    count = next((count for kind, count in _GATES.items() if isinstance(module, kind)), 1)
    return 1 if leaf.startswith("weight_hr") else count
