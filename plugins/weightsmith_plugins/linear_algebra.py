"""Products of matrices, and what is found by them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["symmetric_product", "top_singular_vectors"]


def top_singular_vectors(
    matrices: Tensor, right: Tensor, total: Callable[[Tensor], Tensor] = torch.clone
) -> tuple[Tensor, Tensor, Tensor]:
    """The left and right singular vectors of σ₁, and σ₁, one step of power iteration (v ← WᵀWv / ‖WᵀWv‖) on from
    ``right``.

    Args:
        matrices: shape ``(…, rows, columns)``; or, of one matrix, the rows that are in hand.
        right: shape ``(…, columns)``.
        total: adds up what the processes that hold the other rows have. The left vector is then in hand for these rows.

    >>> top_singular_vectors(torch.diag(torch.tensor([3.0, 1.0])), torch.tensor([1.0, 0.0]))
    (tensor([1., 0.]), tensor([1., 0.]), tensor([3.]))
    """
    right = right.to(matrices.dtype)
    turned = total((matrices.mT @ (matrices @ right.unsqueeze(-1))).squeeze(-1))
    length = torch.linalg.vector_norm(turned, dim=-1, keepdim=True)
    right = torch.where(length > 0, turned / length, right)
    image = (matrices @ right.unsqueeze(-1)).squeeze(-1)
    largest = total(image.square().sum(dim=-1, keepdim=True)).sqrt()
    return (image / largest).nan_to_num_(0.0), right, largest


def symmetric_product(left: Tensor, right: Tensor) -> Tensor:
    """A product of matrices that is known to be symmetric, such as WWᵀ, or that of two polynomials of one symmetric
    matrix. Of a large one on a CPU, what is below the diagonal is not computed, but copied from above: up to 45 % fewer
    steps.

    Args:
        left: shape ``(…, n, k)``.
        right: shape ``(…, k, n)``, with the same leading axes.

    >>> symmetric_product(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [2.0]]))
    tensor([[5.]])
    """
    size = left.shape[-2]
    if size < _SPLIT or left.ndim > 2 or not left.is_cpu:
        return left @ right
    half = size // 2
    across = left[:half] @ right[:, half:]
    product = across.new_empty(size, size)
    product[:half, :half] = symmetric_product(left[:half], right[:, :half])
    product[half:, half:] = symmetric_product(left[half:], right[:, half:])
    product[:half, half:], product[half:, :half] = across, across.mT
    return product


_SPLIT = 192
"""Rows, from which on halves are faster than the whole: not in a stack, whose halves do not lie together."""
