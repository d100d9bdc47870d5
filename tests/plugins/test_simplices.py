"""L1Ball and Simplex, in torch's way and as Numba compiles it, against θ found by bisection in float64."""

import math

import pytest
import torch
import weightsmith_plugins as w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from weightsmith import Site
from weightsmith.tensors import unit_view
from weightsmith_plugins.constraints import sums
from weightsmith_plugins.native import addresses, simplices

ROOM = 0.75 * torch.finfo(torch.float32).eps
KINDS = {
    "ordinary": lambda x: x,
    "whole numbers, of which many are alike": torch.round,
    "nothing": torch.zeros_like,
    "all alike": torch.ones_like,
    "far apart": lambda x: x.mul(8).exp(),
    "alike but for zeros": lambda x: torch.ones_like(x) * (torch.arange(x.shape[1]) % 2),
    "alike but for one far below": lambda x: torch.cat([x[:, :1] * 0 - 1e6, 1 + x[:, 1:] * 1e-5], dim=1),
    "half as large, one after another": lambda x: 2.0 ** -torch.arange(x.shape[1]).clamp(max=120).expand_as(x) * 10,
    "one large among many small": lambda x: torch.cat([x[:, :1] * 0 + 0.5, x[:, 1:] * 0 + 0.6 / x.shape[1]], dim=1),
    "on the edge": lambda x: x.abs() / x.abs().sum(dim=1, keepdim=True),
}
rows = st.tuples(
    st.integers(1, 5),
    st.sampled_from([1, 2, 3, 8, 64, 65, 1000, 5000]),
    st.sampled_from(list(KINDS)),
    st.sampled_from([1.0, 1e-3, 1e-12, 1e12, 1e-38, 1e30]),
    st.integers(0, 10**6),
)


def drawn(units, length, kind, scale, seed):
    values = torch.randn(units, length, generator=torch.Generator().manual_seed(seed))
    return (KINDS[kind](values) * scale).clamp(-3e38, 3e38).contiguous()


def nearest(weight, plugin):
    """By bisection: the sum of max(w − θ, 0) falls with θ."""
    values = weight.double().abs() if plugin._of_magnitudes else weight.double()
    peaks = values.amax(dim=1, keepdim=True)
    values, low, high = values - peaks, torch.full_like(peaks, -plugin._bound), torch.zeros_like(peaks)
    for _ in range(200):
        middle = (low + high) / 2
        is_too_much = (values - middle).clamp(min=0).sum(dim=1, keepdim=True) > plugin._bound
        low, high = torch.where(is_too_much, middle, low), torch.where(is_too_much, high, middle)
    found = (values - high).clamp(min=0)
    if not plugin._of_magnitudes:
        return found
    is_inside = weight.double().abs().sum(dim=1, keepdim=True) <= plugin._bound
    return torch.where(is_inside, weight.double(), weight.sign() * found)


def compiled(weight, plugin):
    found = weight.clone()
    left = simplices.onto_simplices_(
        [found], plugin._bound, ROOM, of_magnitudes=plugin._of_magnitudes, by_rows=[found.ndim > 1]
    )
    return None if len(left) else found


def in_torch(weight, plugin):
    found = weight.clone()
    plugin._unitwise(plugin._project_, sums.as_it_is, [found], [Site.alone(found)], [found])
    return found


PLUGINS = [w.L1Ball(1.0), w.Simplex(), w.L1Ball(30.0), w.Simplex(30.0), w.L1Ball(1e-3), w.Simplex(1e4)]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PLUGINS), rows)
def test_the_nearest_point_is_found(plugin, of):
    start = drawn(*of)
    wanted = nearest(start, plugin)
    rounding = 1e-6 * plugin._bound
    torch.testing.assert_close(in_torch(start, plugin).double(), wanted, rtol=1e-6, atol=rounding)
    found = compiled(start, plugin)
    assert found is not None
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=rounding)


@pytest.mark.parametrize("way", [compiled, in_torch])
@settings(max_examples=200, deadline=None)
@given(plugin=st.sampled_from(PLUGINS), of=rows)
def test_what_is_found_is_in_the_set_and_stays(way, plugin, of):
    found = way(drawn(*of), plugin)
    total = (found.double().abs() if plugin._of_magnitudes else found.double()).sum(dim=1)
    off = (total - plugin._bound).clamp(min=0) if plugin._of_magnitudes else (total - plugin._bound).abs()
    assert (off <= ROOM * plugin._bound).all()
    assert plugin._of_magnitudes or (found >= 0).all()
    assert plugin.holds(found, Site.alone(found))
    assert torch.equal(compiled(found, plugin), found)
    assert torch.equal(in_torch(found, plugin), found)


def as_on_another_device(weight, plugin):
    """In the weight's own precision, by sorting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "_precision", lambda weight: weight.dtype)
        patch.setattr(sums, "_thresholds", lambda rows, total, _: sums._thresholds_by_sorting(rows, total))
        return plugin.project(weight, Site.alone(weight))


@pytest.mark.parametrize("plugin", [w.Simplex(), w.L1Ball(1.0)], ids=repr)
@pytest.mark.parametrize("length", [1000, 10_000, 100_000])
def test_many_small_values_beside_a_large_one_have_the_right_sum_in_any_precision(plugin, length):
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(4, length, generator=generator, dtype=torch.float64)
    for start in (
        torch.cat([torch.ones(4, 1).double(), 0.5 + 1e-4 * small], dim=1),
        torch.cat([torch.full((4, 1), 0.7).double(), small.softmax(dim=1) / 2], dim=1),
        small.softmax(dim=1) + 0.1 * small / length,
    ):
        exact = plugin.project(start, Site.alone(start))
        assert ((exact.abs().sum(dim=1) - 1).abs() <= 8 * torch.finfo(torch.float64).eps).all()
        assert plugin.holds(exact, Site.alone(exact))
        coarse = as_on_another_device(start.float(), plugin)
        assert ((coarse.double().abs().sum(dim=1) - 1).abs() <= 8 * torch.finfo(torch.float32).eps).all()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLUGINS), rows)
def test_sorting_finds_the_same(monkeypatch, plugin, of):
    """As on a GPU; and where Newton's steps are too many."""
    start = drawn(*of)
    found = in_torch(start, plugin)
    with monkeypatch.context() as patched:
        patched.setattr(sums, "_MOST_STEPS", 0)
        torch.testing.assert_close(in_torch(start, plugin), found, rtol=1e-4, atol=1e-5 * plugin._bound)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("plugin", [w.L1Ball(1.0), w.Simplex()], ids=repr)
def test_a_unit_that_is_not_finite_is_left_to_the_plain_formula(monkeypatch, plugin, value):
    start = torch.randn(3, 70, generator=torch.Generator().manual_seed(0))
    start[1, 3] = value
    assert compiled(start, plugin) is None
    found = start.clone()
    plugin.project_all_([found], [Site.alone(found)])
    monkeypatch.setattr(sums, "_MOST_STEPS", 0)
    torch.testing.assert_close(found, plugin.project(start, Site.alone(start)), equal_nan=True)
    torch.testing.assert_close(found[[0, 2]].double(), nearest(start[[0, 2]], plugin), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length", [1, 7, 3000])
@pytest.mark.parametrize("bound", [1e37, 3e38, 1e39])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_bounds_near_the_largest_number_are_kept(dtype, bound, length):
    start = torch.randn(3, length, generator=torch.Generator().manual_seed(0)).mul(1e36).to(dtype)
    for plugin in (w.L1Ball(bound), w.Simplex(bound)):
        found = start.clone()
        plugin.project_all_([found], [Site.alone(found)])
        wanted = nearest(start, plugin).to(dtype)
        torch.testing.assert_close(found, wanted, rtol=0.01 if dtype is torch.bfloat16 else 1e-5, atol=bound * 1e-6)


@pytest.mark.parametrize("way", [compiled, in_torch])
def test_what_has_the_right_sum_but_is_negative_or_hardly_off_is_moved(way):
    assert torch.equal(way(torch.tensor([[2.0, -1.0]]), w.Simplex()), torch.tensor([[1.0, 0.0]]))
    off = torch.full((1, 64), (1 + 20 * torch.finfo(torch.float32).eps) / 64)
    for plugin in (w.Simplex(), w.L1Ball(1.0)):
        assert torch.equal(way(off, plugin), torch.full((1, 64), 1 / 64))


@pytest.mark.parametrize("way", [compiled, in_torch])
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("plugin", PLUGINS, ids=repr)
def test_steps_are_few_even_of_long_rows(way, kind, plugin, monkeypatch):
    def refuse(*_):
        raise AssertionError("sorted")

    monkeypatch.setattr(sums, "_thresholds_by_sorting", refuse)
    assert way(drawn(2, 300_000, kind, 1.0, 0), plugin) is not None


DIFFERENTIATED = [w.L1Ball(0.7, mode="forward"), w.Simplex(0.7, mode="forward")]


@pytest.mark.parametrize("plugin", DIFFERENTIATED, ids=repr)
def test_it_is_differentiated_forwards_too_and_over_batches(plugin):
    start = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    along = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, tangent = torch.func.jvp(plugin, (start,), (along,))
    torch.testing.assert_close(tangent, (plugin(start + 1e-6 * along) - plugin(start - 1e-6 * along)) / 2e-6)
    assert torch.autograd.gradcheck(plugin, start.requires_grad_(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(plugin, start)
    site = Site.alone(start[0])
    each = torch.vmap(lambda row: plugin.project(row, site))(start.detach())
    torch.testing.assert_close(each, torch.stack([plugin.project(row, site) for row in start.detach()]))


@pytest.mark.parametrize("plugin", DIFFERENTIATED, ids=repr)
def test_it_is_traced_as_one_formula(plugin):
    start = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    other = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)) * 10
    site = Site.alone(start)

    class Layer(nn.Module):
        def forward(self, weight):
            return plugin.project(weight, site)

    for traced in (
        make_fx(Layer())(start),
        torch.export.export(Layer(), (start,)).module(),
        torch.compile(Layer(), backend="eager"),
    ):
        torch.testing.assert_close(traced(other), plugin.project(other, site))
    with FakeTensorMode() as mode:
        assert plugin.project(mode.from_tensor(start), site).shape == start.shape


def test_versions_count_what_is_written_alone_and_what_is_inside_keeps_its_bits():
    inside = torch.tensor([[0.25, -0.0, -0.25, 1e-42]])
    weights = [torch.full((2, 4), 3.0), inside.clone(), torch.full((4,), 3.0)]
    versions = [weight._version for weight in weights]
    assert not len(simplices.onto_simplices_(weights, 1.0, ROOM, of_magnitudes=True, by_rows=[True] * 3))
    assert [weight._version - version for weight, version in zip(weights, versions, strict=True)] == [1, 0, 1]
    assert torch.equal(weights[1].view(torch.int32), inside.view(torch.int32))
    assert torch.equal(weights[0], torch.full((2, 4), 0.25))
    assert torch.equal(weights[2], torch.full((4,), 0.25))


def test_nothing_else_is_written():
    memory = torch.full((1000,), 3.0)
    assert not len(
        simplices.onto_simplices_([memory[100:228].view(2, 64)], 1.0, ROOM, of_magnitudes=False, by_rows=[True])
    )
    assert (memory[100:228] == 1 / 64).all()
    assert (memory[:100] == 3).all()
    assert (memory[228:] == 3).all()


def test_it_comes_out_the_same_on_any_number_of_threads():
    threads, found = torch.get_num_threads(), []
    start = torch.randn(7000, 900, generator=torch.Generator().manual_seed(0))
    assert start.numel() > 2 * addresses._SHARE
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(compiled(start, w.Simplex()))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("plugin", [w.L1Ball(0.7), w.Simplex(0.7)], ids=repr)
def test_all_layouts_and_dtypes_are_projected(plugin):
    generator = torch.Generator().manual_seed(0)
    grouped = nn.ConvTranspose1d(4, 6, 3, groups=2)
    several = [
        (torch.randn(5, 7, generator=generator), None),
        (torch.randn(7, 5, generator=generator).T, None),
        (torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last), None),
        (torch.randn(40, 9000, generator=generator), None),
        (torch.randn(300, 200, 3, 3, generator=generator), nn.ConvTranspose2d(300, 200, 3)),
        (torch.randn(5, 7, generator=generator, dtype=torch.float64), None),
        (torch.randn(5, 7, generator=generator).bfloat16(), None),
        (unit_view(torch.randn(4, 3, 3, generator=generator), grouped), grouped),
        (torch.randn(9, generator=generator), None),
        (torch.randn(5, 7, generator=generator), None),
    ]
    weights = [weight.clone(memory_format=torch.preserve_format) for weight, _ in several]
    sites = [Site.alone(torch.randn(4, 3, 3) if module else weight, module) for weight, module in several]
    plugin.project_all_(weights, sites)
    for found, site, (start, _) in zip(weights, sites, several, strict=True):
        values = (found.double().abs() if plugin._of_magnitudes else found.double()).sum(dim=site.unit_dims)
        rounding = 0.01 if found.dtype is torch.bfloat16 else 1e-5
        torch.testing.assert_close(values, torch.full_like(values, 0.7), rtol=rounding, atol=0)
        wanted = plugin.project(start, site)
        torch.testing.assert_close(found, wanted, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("plugin", [w.L1Ball(0.7), w.Simplex(0.7)], ids=repr)
def test_gradients_flow_to_what_is_above_the_threshold(plugin):
    """Away from where one value enters: that of w − θ, θ being the mean of those above less a constant."""
    start = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start[2] /= 100  # inside the ball
    assert torch.autograd.gradcheck(plugin, start.requires_grad_())
