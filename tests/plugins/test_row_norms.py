"""Norms of rows are right in whichever way they are read: some processors are fastest in one place, some in four."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from llvmlite import binding
ask, binding.get_host_cpu_name = binding.get_host_cpu_name, lambda: sys.argv[1]
from weightsmith_plugins.native import row_norms
binding.get_host_cpu_name = ask  # for which it is compiled
assert row_norms._READS_ONE_PLACE == (sys.argv[1] == "znver4")

import torch
from weightsmith_plugins.native.one_pass import bound_norms_, charged_by_rows_, clipped_, clipped_adaptively_, norm_of

drawn = torch.Generator().manual_seed(0)
shapes = [(units, length) for units in (1, 3, 4, 6, 70) for length in (1, 5, 64, 255, 256, 900, 1025, 4095, 4097)]
weights = [torch.randn(shape, generator=drawn) for shape in shapes]
gradients = [torch.randn(shape, generator=drawn) for shape in shapes]
by_rows = [True] * len(shapes)

units = [weight.clone() for weight in weights]
assert not len(bound_norms_(units, 1.0, 1.0, 0.0, 1e15, by_rows=by_rows))
for unit, weight in zip(units, weights, strict=True):
    wanted = weight.double() / weight.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit.double(), wanted, rtol=2e-7, atol=0)

clipped = [gradient.clone() for gradient in gradients]
assert not len(clipped_adaptively_(clipped, weights, 0.9, 1e-3, by_rows=by_rows))
for found, gradient, weight in zip(clipped, gradients, weights, strict=True):
    limit = 0.9 * weight.double().norm(dim=1, keepdim=True).clamp(min=1e-3)
    wanted = gradient.double() * (limit / gradient.double().norm(dim=1, keepdim=True)).clamp(max=1.0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)

clipped = [gradient.clone() for gradient in gradients]
assert not len(clipped_(clipped, 5.0, by_rows=by_rows))
charged = [torch.zeros_like(weight) for weight in weights]
assert not len(charged_by_rows_(charged, weights, 0.1, by_rows=by_rows))
for found, cost, gradient, weight in zip(clipped, charged, gradients, weights, strict=True):
    norms = gradient.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.double(), gradient.double() * (5.0 / norms).clamp(max=1.0), rtol=1e-6, atol=0)
    direction = weight.double() / weight.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(cost.double(), 0.1 * weight.shape[1] ** 0.5 * direction, rtol=1e-6, atol=0)

for length in (64, 900, 4097):  # NaN and infinities stay in their rows; squares leave the range of float32, or of none
    odd = torch.ones(5, length)
    odd[0, -1], odd[1, 0], odd[2], odd[3] = torch.nan, torch.inf, 1e-25, 1e25
    rows = odd.clone()
    assert list(bound_norms_([rows[2:]], 1.0, 1.0, 0.0, 1e30, by_rows=[True])) == []
    torch.testing.assert_close(rows[2:].double().norm(dim=1), torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)
    assert list(bound_norms_([rows], 0.0, 0.5, 0.0, 1e30, by_rows=[True])) == [0]
    torch.testing.assert_close(rows[2:].double().norm(dim=1), torch.full((3,), 0.5).double(), rtol=1e-6, atol=0)
    gradient = odd.clone()
    clipped_([gradient], 0.5, by_rows=[True])
    assert gradient[0].isnan().all() and gradient[3].eq(0).all() and torch.equal(gradient[2], odd[2])
    torch.testing.assert_close(gradient[4].norm(), torch.tensor(0.5))

exact = torch.cat([weight.double().flatten() for weight in weights]).norm()
torch.testing.assert_close(norm_of(weights).double(), exact, rtol=1e-7, atol=0)
"""


@pytest.mark.parametrize("processor", ["znver4", "sapphirerapids"])
def test_norms_are_right_however_rows_are_read(processor, tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, processor]
    subprocess.run(command, env=environment, check=True, timeout=300)
