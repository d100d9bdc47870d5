"""Norms that Numba bounds, against torch's way and against exact arithmetic."""

import math
import sys

import pytest
import torch
import weightsmith_plugins as w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from weightsmith import Site
from weightsmith_plugins.constraints import norms, one_pass

PLUGINS = [w.MaxNorm(0.7), w.UnitNorm(), w.MinMaxNorm(0.5, 1.3), w.MaxNorm(1e-20), w.MinMaxNorm(0.0, 1e25)]
LAYOUTS = {
    "rows": lambda x: x,
    "turned": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "from the middle": lambda x: torch.cat([torch.ones(3).to(x), x.reshape(-1)])[3:].view(x.shape),
}


def by_torch(plugin, weight):
    """As :meth:`project_all_` without Numba."""
    found = weight.clone()
    plugin._unitwise(plugin._scale_, norms.as_it_is, [found], [Site.alone(found)], [found])
    return found


weights = st.tuples(
    st.sampled_from([(1,), (7,), (1, 1), (5, 64), (64, 3), (300, 200), (4, 3, 2, 2), (2, 5, 1)]),
    st.sampled_from(list(LAYOUTS)),
    st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([1.0, 1.0, 1e-42, 1e-25, 1e18, 1e37]),
    st.sampled_from([None, 0.0, math.nan, math.inf, -math.inf, 1.0]),
    st.integers(0, 10**6),
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PLUGINS), st.lists(weights, min_size=1, max_size=6))
def test_it_is_what_torch_finds_whatever_the_weights(plugin, several):
    given_ = []
    for shape, layout, dtype, scale, one_unit, seed in several:
        weight = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
        if one_unit is not None:
            weight[0] = one_unit
        given_.append(LAYOUTS[layout](weight))
    found = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x) for x in given_]
    versions = [x._version for x in found]
    plugin.project_all_(found, [Site.alone(x) for x in found])
    for start, one, version in zip(given_, found, versions, strict=True):
        wanted = by_torch(plugin, start)
        rounding = 16 * torch.finfo(start.dtype).eps
        torch.testing.assert_close(one, wanted, rtol=rounding, atol=1e-44, equal_nan=True)
        assert torch.equal(one, start) or one._version > version or one.isnan().any()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 4000), st.floats(-40, 37), st.booleans(), st.integers(0, 10**6))
def test_norms_are_those_of_exact_arithmetic(length, exponent, are_equal, seed):
    values = torch.randn(3, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight = ((values * 0 + values[:, :1] if are_equal else values) * 10**exponent / length**0.5).float()
    exact = weight.double().norm(dim=1)
    left = one_pass.bound_norms_([weight], [length], 0.5, 2.0, 5e-7)
    expected = exact.clamp(0.5, 2.0)
    if not left:
        torch.testing.assert_close(weight.double().norm(dim=1), expected, rtol=1e-6, atol=0)
    else:  # a factor, or a number, that is out of reach
        factors = expected / exact
        assert not ((factors > 1e-15) & (factors < 1e15)).all()


def test_nothing_else_is_written():
    memory = torch.full((1000,), 3.0)
    weight = memory[100:228].view(2, 64)
    assert one_pass.bound_norms_([weight], [64], 0.0, 1.0, 0.0) == []
    assert (weight.norm(dim=1) - 1).abs().max() < 1e-6
    assert (memory[:100] == 3).all()
    assert (memory[228:] == 3).all()


def test_a_gradient_that_needs_the_old_values_is_refused_as_after_any_write():
    weight = torch.randn(4, 4, requires_grad=True)
    loss = weight.square().sum()
    with torch.no_grad():
        w.MaxNorm(0.1).project_all_([weight], [Site.alone(weight)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Kept(torch.Tensor):
    """A tensor that is more than its memory."""


def test_what_it_cannot_treat_is_left_as_it_is():
    rows = torch.full((2, 8), 3.0)
    columns, half, double = rows.clone().T, rows.clone().bfloat16(), rows.clone().double()
    special, zero = rows.clone().as_subclass(Kept), torch.zeros(2, 8)
    others = [columns, half, double, special, zero, torch.empty(2, 8, device="meta")]
    lengths = [2, 8, 8, 8, 8, 8]
    before = [other.clone() for other in others]
    assert one_pass.bound_norms_([*others, rows, rows.clone()], [*lengths, 8, 0], 1.0, 1.0, 0.0) == [*range(6), 7]
    assert all(torch.equal(one, other) for one, other in zip(before[:-1], others[:-1], strict=True))
    assert one_pass.bound_norms_([], [], 1.0, 1.0, 0.0) == []
    assert one_pass.bound_norms_([torch.empty(0, 8)], [8], 1.0, 1.0, 0.0) == []


def test_large_weights_are_torchs_where_it_has_several_threads():
    large, small = torch.randn(400, 100), torch.randn(10, 10)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert one_pass.bound_norms_([small, large], [10, 100], 0.0, 1.0, 0.0) == [1]
        torch.set_num_threads(1)
        assert one_pass.bound_norms_([small, large], [10, 100], 0.0, 1.0, 0.0) == []
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def afresh():
    """Whether Numba works is asked again, before and after."""
    norms._in_one_pass.cache_clear()
    yield
    norms._in_one_pass.cache_clear()


@pytest.mark.parametrize("trouble", ["missing", "failing"])
def test_without_numba_torch_bounds_them(afresh, trouble, monkeypatch, caplog):
    def fail(*_):
        raise OSError("No space left on device")

    if trouble == "missing":
        monkeypatch.setitem(sys.modules, "numba", None)
        monkeypatch.delitem(sys.modules, "weightsmith_plugins.constraints.one_pass")
    else:
        monkeypatch.setattr(one_pass, "_bound_all", fail)
    layer = nn.Linear(8, 4)
    for _ in range(2):
        w.UnitNorm().project_all_([layer.weight.data], [Site.alone(layer.weight)])
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(4))
    told = [record.getMessage() for record in caplog.records]
    failed = ["norms are bounded the slower way, as Numba fails: OSError: No space left on device"]
    assert told == (failed if trouble == "failing" else [])
