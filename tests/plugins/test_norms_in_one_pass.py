"""Norms that Numba bounds, against torch's way and against exact arithmetic."""

import math
import sys

import pytest
import torch
import weightsmith_plugins as w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from weightsmith import Site, Trainer, WeightEvents
from weightsmith_plugins.constraints import norms, one_pass

PLUGINS = [w.MaxNorm(0.7), w.UnitNorm(), w.MinMaxNorm(0.5, 1.3), w.MaxNorm(1e-20), w.MinMaxNorm(0.0, 1e25)]
LAYOUTS = {
    "rows": lambda x: x,
    "turned": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "from the middle": lambda x: torch.cat([torch.ones(3).to(x), x.reshape(-1)])[3:].view(x.shape),
}


@pytest.fixture(autouse=True)
def _with_numba(request):
    if "afresh" not in request.fixturenames:
        assert norms._in_one_pass() is one_pass


def by_torch(plugin, weight):
    """As ``project_all_`` without Numba."""
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
        assert (one._version > version) or torch.equal(one, start)
        site = Site.alone(one)
        again = one.clone(memory_format=torch.preserve_format)
        plugin.project_all_([again], [site])
        assert torch.equal(again, one) or not one_pass.can_bound([one])[0] or not one.isfinite().all()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 4000), st.floats(-40, 37), st.booleans(), st.integers(0, 10**6))
def test_norms_are_those_of_exact_arithmetic(length, exponent, are_equal, seed):
    values = torch.randn(3, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight = ((values * 0 + values[:, :1] if are_equal else values) * 10**exponent / length**0.5).float()
    exact = weight.double().norm(dim=1)
    left = one_pass.bound_norms_([weight], [True], 0.5, 2.0, 5e-7)
    expected = exact.clamp(0.5, 2.0)
    if not left:
        torch.testing.assert_close(weight.double().norm(dim=1), expected, rtol=1e-6, atol=0)
    else:  # a factor, or a number, that is out of reach
        factors = expected / exact
        assert not ((factors > 1e-15) & (factors < 1e15)).all()


def test_nothing_else_is_written():
    memory = torch.full((1000,), 3.0)
    weight = memory[100:228].view(2, 64)
    assert one_pass.bound_norms_([weight], [True], 0.0, 1.0, 0.0) == []
    assert (weight.norm(dim=1) - 1).abs().max() < 1e-6
    assert (memory[:100] == 3).all()
    assert (memory[228:] == 3).all()


def test_a_gradient_that_needs_the_old_values_is_refused_as_after_any_write_and_only_then():
    written, kept = torch.randn(4, 4, requires_grad=True), torch.zeros(4, 4, requires_grad=True)
    loss, other = written.square().sum(), kept.square().sum()
    with torch.no_grad():
        w.MaxNorm(0.1).project_all_([written, kept], [Site.alone(written), Site.alone(kept)])
    other.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Kept(torch.Tensor):
    """A tensor that is more than its memory."""


def test_what_it_cannot_treat_is_left_as_it_is():
    rows = torch.full((2, 8), 3.0)
    columns, half, double = rows.clone().T, rows.clone().bfloat16(), rows.clone().double()
    special, zero, nowhere = rows.clone().as_subclass(Kept), torch.zeros(2, 8), torch._efficientzerotensor((2, 8))
    with torch.inference_mode():
        inference = rows.clone()
    others = [columns, half, double, special, zero, nowhere, inference, torch.empty(2, 8, device="meta")]
    before = [other.clone() for other in others]
    by_rows = [True] * (len(others) + 1) + [False]
    assert one_pass.bound_norms_([*others, rows, rows.clone()], by_rows, 1.0, 1.0, 0.0) == [*range(8), 9]
    assert all(torch.equal(one, other) for one, other in zip(before[:-1], others[:-1], strict=True))
    assert one_pass.bound_norms_([], [], 1.0, 1.0, 0.0) == []
    assert one_pass.bound_norms_([torch.empty(0, 8)], [True], 1.0, 1.0, 0.0) == []
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        w.UnitNorm().project_all_([nn.Linear(8, 4).weight], [Site.alone(rows)])


def test_inside_functional_transformations_torch_bounds_them():
    def bounded(weight):
        weight = weight.clone()
        w.MaxNorm(1.0).project_all_([weight], [Site.alone(torch.ones(2, 8))])
        return weight

    weight = torch.full((2, 8), 3.0)
    torch.testing.assert_close(torch.func.functionalize(bounded)(weight), bounded(weight))


def test_what_comes_out_does_not_depend_on_threads():
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            weights = [torch.randn(700, 900, generator=torch.Generator().manual_seed(0)), torch.full((7, 9), 2.0)]
            assert one_pass.bound_norms_(weights, [True, True], 0.0, 1.0, 0.0) == []
            found.append(weights)
    finally:
        torch.set_num_threads(threads)
    for weights in found[1:]:
        assert all(map(torch.equal, weights, found[0]))
    torch.testing.assert_close(found[0][0].norm(dim=1), torch.ones(700))


@pytest.mark.parametrize("length", [10, 5_000, 100_000])
def test_a_long_unit_that_is_inside_stays_and_counts_as_inside(length):
    weight = torch.full((2, length), length**-0.5)
    start, site = weight.clone(), Site.alone(weight)
    assert w.UnitNorm().holds(weight, site)
    w.UnitNorm().project_all_([weight], [site])
    assert torch.equal(weight, start)
    drawn = torch.randn(1, length, generator=torch.Generator().manual_seed(0))
    projected = w.UnitNorm()(drawn)
    assert projected.double().norm() == pytest.approx(1, rel=3e-7)
    w.UnitNorm().project_all_([drawn], [site])
    torch.testing.assert_close(drawn, projected, rtol=1e-6, atol=0)


def test_a_weight_of_another_shape_is_bounded_in_its_own_rows():
    layer = nn.Linear(8, 4, bias=False)
    trainer = Trainer(layer, torch.optim.SGD(layer.parameters(), lr=0.0), nn.MSELoss(), plugins=[w.UnitNorm()])
    trainer.run([(torch.ones(1, 8), torch.ones(1, 4))])
    layer.weight.data = torch.randn(6, 3)
    trainer._fire_event(WeightEvents.WEIGHTS_EDITED)
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(6))


def test_a_subclass_with_bounds_of_its_own_is_asked():
    class Half(w.MaxNorm):
        def bounded(self, norms):
            return norms.clamp(max=self.limit / 2)

    weight = torch.randn(4, 8)
    Half(1.0).project_all_([weight], [Site.alone(weight)])
    torch.testing.assert_close(weight.norm(dim=1), torch.full((4,), 0.5))


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
    assert norms._in_one_pass() is None
    layer = nn.Linear(8, 4)
    for _ in range(2):
        w.UnitNorm().project_all_([layer.weight.data], [Site.alone(layer.weight)])
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(4))
    told = [record.getMessage() for record in caplog.records]
    failed = ["norms are bounded the slower way, as Numba fails: OSError: No space left on device"]
    assert told == (failed if trouble == "failing" else [])
