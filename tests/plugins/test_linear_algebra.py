"""Products that are computed by halves are those that torch computes whole."""

import pytest
import torch
from weightsmith_plugins.linear_algebra import symmetric_product


@pytest.mark.parametrize(
    "shape", [(5, 7), (191, 64), (192, 300), (193, 10), (3, 250, 40), (500, 500), (768, 32), (192, 0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gram_matrix_is_that_of_the_whole_product_and_symmetric(shape, dtype):
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for given in (rows, rows.mT.contiguous().mT):
        found = symmetric_product(given, given.mT)
        exact = given.double() @ given.double().mT
        rounding = 16 * torch.finfo(dtype).eps * exact.abs().amax() if exact.numel() else 0.0
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=rounding)
        if shape[-2] >= 192 and len(shape) == 2:
            half = shape[-2] // 2
            assert torch.equal(found[..., :half, half:], found[..., half:, :half].mT)


def test_polynomials_of_one_symmetric_matrix_are_multiplied():
    drawn = torch.randn(300, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 30
    symmetric = drawn + drawn.mT
    square, cube = symmetric @ symmetric, symmetric @ symmetric @ symmetric
    torch.testing.assert_close(symmetric_product(square, cube), square @ cube, rtol=1e-12, atol=1e-12)


def test_its_gradient_is_that_of_the_whole_product():
    rows = torch.randn(200, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad((symmetric_product(rows, rows.mT) - torch.eye(200)).square().sum(), rows)
    (wanted,) = torch.autograd.grad((rows @ rows.mT - torch.eye(200)).square().sum(), rows)
    torch.testing.assert_close(found, wanted)


def test_its_precision_does_not_depend_on_its_size():
    rows = torch.randn(300, 20, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu"):
        assert symmetric_product(rows[:100], rows[:100].mT).dtype is symmetric_product(rows, rows.mT).dtype
