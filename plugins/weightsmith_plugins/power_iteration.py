"""The largest singular value and its vectors, by steps of power iteration."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["top_singular_vectors"]


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
