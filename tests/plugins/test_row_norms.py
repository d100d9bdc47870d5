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
from weightsmith_plugins.native.one_pass import bound_norms_, clipped_adaptively_, norm_of

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

exact = torch.cat([weight.double().flatten() for weight in weights]).norm()
torch.testing.assert_close(norm_of(weights).double(), exact, rtol=1e-7, atol=0)
"""


@pytest.mark.parametrize("processor", ["znver4", "sapphirerapids"])
def test_norms_are_right_however_rows_are_read(processor, tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, processor]
    subprocess.run(command, env=environment, check=True, timeout=300)
