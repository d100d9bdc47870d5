"""That compiled passes over weights, gradients and masks read and write what they are given and nothing beside it:
memory that must not be touched is taken away, in a process of its own, which ends if it is touched."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows takes memory away in another way")

MEMORY = """
import ctypes, math, mmap
import torch
from weightsmith.ranking import keep_largest_
from weightsmith_plugins.native import one_pass
from weightsmith_plugins.sparsity.one_pass import masked_, passes_over

system, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
system.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
NONE, READ = 0, mmap.PROT_READ


def forbid(address, pages, allowed):
    assert system.mprotect(address, pages * page, allowed) == 0, ctypes.get_errno()


def tensor_at(address, shape, dtype=torch.float32):
    values = (ctypes.c_uint8 * (dtype.itemsize * math.prod(shape))).from_address(address)
    return torch.frombuffer(values, dtype=dtype).view(shape)


def pages_of(count):
    memory = mmap.mmap(-1, count * page)
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))
"""

BETWEEN_PAGES = """
def between(shape, at_start, dtype=torch.float32):
    size = dtype.itemsize * math.prod(shape)
    inner = -(-size // page)
    memory, start = pages_of(inner + 2)
    forbid(start, 1, NONE)
    forbid(start + (inner + 1) * page, 1, NONE)
    tensor = tensor_at(start + page + (0 if at_start else inner * page - size), shape, dtype)
    return memory, tensor.copy_(torch.randn(shape) > 0 if dtype is torch.bool else torch.randn(shape))


shapes = [(rows, length) for rows in (1, 2, 3, 5, 6, 7, 65) for length in (1, 3, 64, 255, 1025, 4097)]
for shape in [*shapes, (1,), (7,), (4099,), (70_001,)]:
    for at_start in (True, False):
        held, gradient = between(shape, at_start)
        also_held, weight = between(shape, at_start)
        assert not len(one_pass.bound_norms_([weight], 0.0, 0.5, 5e-7, 1e15, by_rows=[True]))
        assert not len(one_pass.clipped_([gradient], 0.4, by_rows=[True]))
        assert not len(one_pass.clipped_adaptively_([gradient], [weight], 0.1, 1e-3, by_rows=[True]))
        assert not len(one_pass.charged_by_rows_([gradient], [weight], 0.1, by_rows=[True]))
        assert not len(one_pass.charged_([gradient], [weight], 0.1, 0.1))
        assert one_pass.norm_of([gradient]) > 0
        mask_held, mask = between(shape, at_start, torch.bool)
        mask.view(-1)[0] = True
        assert not len(masked_([weight], [mask]))
        keep_largest_(passes_over([weight], [mask]), max(1, int(mask.sum()) // 2))
print("untouched")
"""

READ_ONLY_ROWS = """
length = page // 4
held, start = pages_of(9)
weight = tensor_at(start, (9, length))
weight[:] = 1e-3
weight[1::2] = 1.0
for row in range(0, 9, 2):
    forbid(start + row * page, 1, READ)
assert not len(one_pass.bound_norms_([weight], 0.0, 1.0, 5e-7, 1e15, by_rows=[True]))
torch.testing.assert_close(weight.norm(dim=1)[1::2], torch.ones(4))
assert not len(one_pass.clipped_([weight], 1.0, by_rows=[True]))
print("untouched")
"""


@pytest.mark.parametrize("touched", [BETWEEN_PAGES, READ_ONLY_ROWS], ids=["beside a tensor", "rows that are inside"])
def test_it_is_not_touched(touched):
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEMORY + touched], capture_output=True, text=True, timeout=200
    )
    assert (ended.returncode, ended.stdout) == (0, "untouched\n"), ended.stderr
