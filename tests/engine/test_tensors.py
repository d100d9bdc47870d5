"""The faster paths against the plain ones: over shapes, lengths, ties, infinities and layouts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weightsmith.ranking import largest, largest_of_groups
from weightsmith.tensors import add_differences_, clamp_, global_norm, keep_, normalize_, sign_


def first_of_the_largest(rows, count):
    """By NumPy's stable sort."""
    order = np.argsort(-rows.numpy(), axis=1, kind="stable")[:, :count]
    kept = np.zeros(rows.shape, dtype=bool)
    np.put_along_axis(kept, order, True, axis=1)
    return torch.from_numpy(kept)


def values(size, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size, generator=generator)
    if kind == "ties":
        return (drawn * 3).round()
    if kind == "zeros":
        return drawn.masked_fill(torch.rand(size, generator=generator) < 0.8, 0.0)
    if kind == "pruned":
        return drawn.abs().masked_fill(torch.rand(size, generator=generator) < 0.7, -torch.inf)
    return drawn


KINDS = st.sampled_from(["normal", "ties", "zeros", "pruned"])


@given(st.integers(1, 6), st.integers(1, 40), KINDS, st.data())
@settings(max_examples=150, deadline=None)
def test_the_largest_of_short_rows(rows, length, kind, data):
    drawn = values((rows, length), kind, data.draw(st.integers(0, 1000)))
    count = data.draw(st.integers(0, length))
    assert torch.equal(largest(drawn, count), first_of_the_largest(drawn, count))


@pytest.mark.parametrize("size", [2**16 + 1, 200_000, 2**20 + 3])
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "pruned", "sorted"])
@pytest.mark.parametrize("share", [0.0001, 0.2, 0.5, 0.999])
def test_the_largest_of_a_long_row_is_exact_though_a_sample_brackets_it(size, kind, share):
    drawn = values((1, size), kind, 0).sort().values if kind == "sorted" else values((1, size), kind, 1)
    count = max(1, int(share * size))
    assert torch.equal(largest(drawn, count), first_of_the_largest(drawn, count))


@given(st.integers(0, 2), st.integers(1, 6), KINDS, st.data())
@settings(max_examples=150, deadline=None)
def test_the_largest_of_groups_along_any_axis(axis, size, kind, data):
    count = data.draw(st.integers(1, size))
    shape = [data.draw(st.integers(1, 4)) for _ in range(3)]
    shape[axis] *= size
    drawn = values(shape, kind, data.draw(st.integers(0, 1000)))
    last = drawn.movedim(axis, -1)
    wanted = first_of_the_largest(last.reshape(-1, size), count).reshape(last.shape).movedim(-1, axis)
    assert torch.equal(largest_of_groups(drawn, axis, count, size), wanted)


def test_of_groups_with_numbers_that_are_none_as_many_are_kept():
    drawn = torch.tensor([[torch.nan, 1.0, 2.0, 0.5, 3.0, 1.0, 4.0, 2.0]])
    kept = largest_of_groups(drawn, 1, 2, 4)
    assert kept.reshape(2, 4).sum(1).tolist() == [2, 2]
    assert kept[0, 4:].tolist() == [True, False, True, False]


SIZES = [(3,), (4, 5), (300, 400), (2, 3, 4)]  # many small ones go together, a large one alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sizes", [SIZES[:2], SIZES[:2] * 5, SIZES])
def test_arithmetic_on_many_is_that_on_each(sizes, dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator).to(dtype) for size in sizes] + [torch.zeros(2, dtype=dtype)]

    def after(change):
        found = [tensor.clone() for tensor in tensors]
        change(found)
        return found

    for found, tensor in zip(after(lambda t: clamp_(t, -0.5, 0.25)), tensors, strict=True):
        assert torch.equal(found, tensor.clamp(-0.5, 0.25))
    for found, tensor in zip(after(lambda t: clamp_(t, 0.0, None)), tensors, strict=True):
        assert torch.equal(found, tensor.clamp(min=0.0))
    for found, tensor in zip(after(sign_), tensors, strict=True):
        assert torch.equal(found, tensor.sign())
    for found, tensor in zip(after(lambda t: normalize_(t, 2.0)), tensors, strict=True):
        length = tensor.double().norm()
        wanted = tensor.double() * (2.0 / length if length > 0 else 1.0)
        assert torch.allclose(found.double(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=0)
    together = torch.cat([tensor.double().flatten() for tensor in tensors]).norm()
    assert abs(global_norm(tensors).item() - together.item()) <= 1e-5 * together.item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_what_is_not_kept_is_zero_whatever_it_was(dtype):
    weight = torch.tensor([[1.5, -2.0, 3.0], [-torch.inf, torch.nan, -0.0]]).to(dtype).t()  # not contiguous
    mask = torch.tensor([[True, False], [True, False], [False, False]])
    keep_(weight, mask)
    assert weight.tolist() == [[1.5, 0], [-2, 0], [0, 0]]
    assert dtype.is_complex or not weight.signbit().logical_and(weight == 0).any()


def test_ties_in_one_group_do_not_hide_a_nan_in_another():
    drawn = torch.tensor([[2.0, 2, 2, 1], [2, 2, 2, 1], [torch.nan, 1, 2, 3]])
    wanted = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1]], dtype=torch.bool)
    assert torch.equal(largest_of_groups(drawn, 1, 2, 4), wanted)
    assert torch.equal(largest(drawn, 2), wanted)
    wide = torch.cat([drawn, torch.zeros(3, 8)], dim=1)
    assert torch.equal(largest(wide, 2)[:, :4], wanted)


@pytest.mark.parametrize(("count", "size"), [(32, 64), (100, 128), (512, 1024)])
def test_large_groups_are_sorted_out_otherwise(count, size):
    drawn = values((3, 2 * size), "ties", 0)
    wanted = first_of_the_largest(drawn.reshape(-1, size), count).reshape(drawn.shape)
    assert torch.equal(largest_of_groups(drawn, 1, count, size), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sizes", [SIZES[:2] * 5, [(700, 400)], [(3,), (700, 400), (5, 100_000)], [(), (0, 3)]])
@pytest.mark.parametrize("is_scaled", [False, True])
def test_differences_are_added_as_the_formula_says(is_scaled, sizes, dtype):
    """Of tensors near their bases, where the difference counts; also of one whose memory has another order."""
    generator = torch.Generator().manual_seed(0)
    drawn = [[torch.randn(size, generator=generator).to(dtype) for size in sizes] for _ in range(3)]
    tensors, bases, scales = ([x.mT.contiguous().mT if x.ndim > 1 else x for x in some] for some in drawn)
    others = [base + 1e-3 * torch.randn(base.shape, generator=generator).to(dtype) for base in bases]
    rows = zip(tensors, others, bases, scales, strict=True)
    wanted = [t.double() + 0.1 * (s.double() if is_scaled else 1.0) * (o.double() - b.double()) for t, o, b, s in rows]
    add_differences_(tensors, others, bases, 0.1, scales if is_scaled else None)
    for found, exact in zip(tensors, wanted, strict=True):
        rounding = torch.finfo(dtype).eps
        torch.testing.assert_close(found, exact.to(dtype), rtol=2 * rounding, atol=1e-2 * rounding)


@pytest.mark.parametrize("size", [(20, 30), (700, 400)])
def test_differences_from_what_broadcasts_are_added(size):
    tensor, other = torch.zeros(size), torch.randn(size, generator=torch.Generator().manual_seed(0))
    for base in (other.mean(1, keepdim=True), other.mean(0), other.mean()):
        tensor.zero_()
        add_differences_([tensor], [other], [base], 0.5, [other[:, :1]])
        torch.testing.assert_close(tensor, 0.5 * other[:, :1] * (other - base))


@pytest.mark.parametrize("count", [1, 8, 9])
def test_bounds_leave_what_is_no_number_and_take_what_is_infinite(count):
    """However many there are."""
    value = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 0.3, -0.3])
    tensors = [value.clone() for _ in range(count)]
    clamp_(tensors, -0.1, 0.2)
    for tensor in tensors:
        torch.testing.assert_close(tensor, value.clamp(-0.1, 0.2), rtol=0, atol=0, equal_nan=True)
        assert tensor[3].signbit()


@pytest.mark.parametrize(("count", "side"), [(8, 10), (9, 10), (40, 10), (40, 100)])
@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.25), (None, 0.25), (-0.5, None)])
def test_clamping_is_torchs_however_many_there_are(count, side, low, high):
    tensors = [torch.randn(side, side) for _ in range(count)]
    tensors[3][0, 0] = math.nan
    wanted = [tensor.clamp(low, high) for tensor in tensors]
    clamp_(tensors, low, high)
    for found, tensor in zip(tensors, wanted, strict=True):
        torch.testing.assert_close(found, tensor, rtol=0, atol=0, equal_nan=True)
