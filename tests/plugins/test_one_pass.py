"""What Numba compiles for many weights at once, against torch's way, the plain formulas, and exact arithmetic."""

import contextlib
import math
import sys

import pytest
import torch
import weightsmith_plugins as w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from weightsmith import ConfigurationError, Constraint, Penalty, Site, Trainer, WeightEvents
from weightsmith.tensors import add_, add_signs_, global_norm
from weightsmith_plugins.constraints import norms
from weightsmith_plugins.native import addresses, compiling, one_pass, simplices
from weightsmith_plugins.sparsity import one_pass as masks_in_one_pass

PLUGINS = [w.MaxNorm(0.7), w.UnitNorm(), w.MinMaxNorm(0.5, 1.3), w.MaxNorm(1e-20), w.MinMaxNorm(0.0, 1e25)]
LAYOUTS = {
    "rows": lambda x: x,
    "turned": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "from the middle": lambda x: torch.cat([torch.ones(3).to(x), x.reshape(-1)])[3:].view(x.shape),
}


@pytest.fixture(autouse=True)
def _with_numba(request, monkeypatch):
    """However few tensors there are."""
    monkeypatch.setattr(compiling, "_LEAST", {})
    if "afresh" not in request.fixturenames:
        assert all(compiling._tried(name) for name in one_pass._TRIALS)


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
        assert torch.equal(again, one) or not addresses.are_suited([one])[0] or not one.isfinite().all()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 4000), st.floats(-40, 37), st.booleans(), st.integers(0, 10**6))
def test_norms_are_those_of_exact_arithmetic(length, exponent, are_equal, seed):
    values = torch.randn(3, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight = ((values * 0 + values[:, :1] if are_equal else values) * 10**exponent / length**0.5).float()
    exact = weight.double().norm(dim=1)
    left = one_pass.bound_norms_([weight], 0.5, 2.0, 5e-7, 1e15, by_rows=[True])
    expected = exact.clamp(0.5, 2.0)
    if not len(left):
        torch.testing.assert_close(weight.double().norm(dim=1), expected, rtol=1e-6, atol=0)
    else:  # a factor, or a number, that is out of reach
        factors = expected / exact
        assert not ((factors > 1e-15) & (factors < 1e15)).all()


def test_versions_count_what_is_written_alone():
    weights = [torch.full((2, 4), 3.0), torch.zeros(2, 4), torch.full((2, 4), 0.5)]
    assert list(one_pass.bound_norms_(weights, 1.0, 1.0, 0.0, 1e15, by_rows=[True] * 3)) == [1]
    assert [weight._version for weight in weights] == [1, 0, 0]


def test_nothing_else_is_written():
    memory = torch.full((1000,), 3.0)
    weight = memory[100:228].view(2, 64)
    assert list(one_pass.bound_norms_([weight], 0.0, 1.0, 0.0, 1e15, by_rows=[True])) == []
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


def test_a_weight_without_values_is_done():
    weights = [torch.empty(5, 0), torch.empty(0, 8), torch.full((2, 2), 3.0)]
    assert list(one_pass.bound_norms_(weights, 1.0, 1.0, 0.0, 1e15, by_rows=[True] * 3)) == []
    torch.testing.assert_close(weights[2].norm(dim=1), torch.ones(2))


def test_what_it_cannot_treat_is_left_as_it_is():
    rows = torch.full((2, 8), 3.0)
    columns, half, double = rows.clone().T, rows.clone().bfloat16(), rows.clone().double()
    special, zero, nowhere = rows.clone().as_subclass(Kept), torch.zeros(2, 8), torch._efficientzerotensor((2, 8))
    with torch.inference_mode():
        inference = rows.clone()
    others = [columns, half, double, special, zero, nowhere, inference, torch.empty(2, 8, device="meta")]
    before = [other.clone() for other in others]
    by_rows = [True] * (len(others) + 1) + [False]
    assert list(one_pass.bound_norms_([*others, rows, rows.clone()], 1.0, 1.0, 0.0, 1e15, by_rows=by_rows)) == [
        *range(8),
        9,
    ]
    assert all(torch.equal(one, other) for one, other in zip(before[:-1], others[:-1], strict=True))
    assert list(one_pass.bound_norms_([], 1.0, 1.0, 0.0, 1e15, by_rows=[])) == []
    assert list(one_pass.bound_norms_([torch.empty(0, 8)], 1.0, 1.0, 0.0, 1e15, by_rows=[True])) == []
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        w.UnitNorm().project_all_([nn.Linear(8, 4).weight], [Site.alone(rows)])


@pytest.mark.parametrize("plugin", [w.MaxNorm(1.0), w.UnitNorm()])
def test_inside_functional_transformations_torch_bounds_them(plugin):
    def bounded(weight):
        weight = weight.clone()
        plugin.project_all_([weight], [Site.alone(torch.ones(2, 8))])
        return weight

    weight = torch.full((2, 8), 3.0)
    torch.testing.assert_close(torch.func.functionalize(bounded)(weight), bounded(weight))


def test_what_comes_out_does_not_depend_on_threads():
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            weights = [torch.randn(7000, 900, generator=torch.Generator().manual_seed(0)), torch.full((7, 9), 2.0)]
            assert list(one_pass.bound_norms_(weights, 0.0, 1.0, 0.0, 1e15, by_rows=[True, True])) == []
            found.append(weights)
            with_zeros = torch.ones(7000, 900)
            with_zeros[-1] = 0
            assert list(one_pass.bound_norms_([with_zeros], 1.0, 1.0, 0.0, 1e15, by_rows=[True])) == [0]
    finally:
        torch.set_num_threads(threads)
    for weights in found[1:]:
        assert all(map(torch.equal, weights, found[0]))
    torch.testing.assert_close(found[0][0].norm(dim=1), torch.ones(7000))


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


# -------------------------------------------------------------------- values, penalties, gradients

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-42, -1e-42, 1e-30, 3e38, math.inf, -math.inf, math.nan]
RATES = st.sampled_from([0.0, 0.01, 0.3, 1e-30, 1e10])
shapes = st.lists(
    st.sampled_from([(1,), (7,), (33, 5), (64, 64), (3, 2, 2, 2), (5000,), (0, 3)]), min_size=1, max_size=6
)


def drawn(shapes, seed, scale=1.0):
    """Ordinary numbers, and a few that are not."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) * scale for shape in shapes]
    for tensor in tensors:
        flat = tensor.view(-1)
        places = torch.randint(0, max(1, flat.numel()), (flat.numel() // 4,), generator=generator)
        flat[places] = torch.tensor(SPECIAL)[torch.randint(0, len(SPECIAL), places.shape, generator=generator)]
    return tensors


def copies(tensors):
    return [tensor.clone() for tensor in tensors]


def assert_same_bits(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        are_numbers = ~one.isnan()
        assert torch.equal(one[are_numbers].view(torch.int32), other[are_numbers].view(torch.int32))


@settings(max_examples=100, deadline=None)
@given(shapes, RATES, st.one_of(RATES, st.none()), st.integers(0, 10**6))
def test_charging_gives_the_bits_that_torch_gives(shapes, signs, values, seed):
    weights, gradients = drawn(shapes, seed), drawn(shapes, seed + 1)
    wanted, start, versions = copies(gradients), copies(weights), [gradient._version for gradient in gradients]
    assert not one_pass.charged_(gradients, weights, signs, values)
    add_signs_(wanted, weights, signs)
    if values is not None:
        add_(wanted, weights, values)
    assert_same_bits(gradients, wanted)
    assert_same_bits(weights, start)
    assert all(gradient._version > version for gradient, version in zip(gradients, versions, strict=True))


ENDS = st.sampled_from([0, 0.0, -0.0, 1e-42, -1e-42, 0.01, -0.01, 1, -1.0, 1e38, -1e38, math.inf, -math.inf])


@settings(max_examples=200, deadline=None)
@given(shapes, ENDS, ENDS, st.integers(0, 10**6))
def test_clamping_gives_the_bits_that_torch_gives(shapes, one, other, seed):
    low, high = sorted([one, other])
    weights = drawn(shapes, seed)
    wanted, versions = [weight.clamp(low, high) for weight in weights], [weight._version for weight in weights]
    assert not one_pass.clamped_(weights, low, high)
    assert_same_bits(weights, wanted)
    assert all(weight._version > version for weight, version in zip(weights, versions, strict=True))


@pytest.mark.parametrize(("low", "high"), [(-0.5, 1e39), (-1e39, 0.5)])
def test_a_bound_beyond_float32_is_left_to_torch(low, high):
    weight = torch.tensor([3.0, -3.0])
    assert list(one_pass.clamped_([weight], low, high)) == [0]
    assert weight.tolist() == [3.0, -3.0]


@pytest.mark.parametrize(("low", "high", "wanted"), [(None, 0.5, [0.5, -3.0]), (-0.5, None, [3.0, -0.5])])
def test_one_bound_alone_asks_for_nothing_compiled(low, high, wanted, monkeypatch):
    monkeypatch.setattr(compiling, "_tried", None)
    weights = [torch.tensor([3.0, -3.0]) for _ in range(20)]
    w.Clamp(low, high).project_all_(weights, [Site.alone(weight) for weight in weights])
    assert all(weight.tolist() == wanted for weight in weights)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([w.GroupLasso(0.1), w.ClipUnitNorm(0.5), w.AdaptiveClip(0.1), w.AdaptiveClip(10.0, 1e-6)]),
    shapes,
    st.sampled_from([1e-30, 1e-3, 1.0, 1e3, 1e30]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_what_goes_by_the_norms_of_rows_is_what_the_plain_formula_gives(plugin, shapes, scale, with_special, seed):
    gradients, weights = drawn(shapes, seed, scale), drawn(shapes, seed + 1, scale)
    if not with_special:
        gradients, weights = ([t.nan_to_num(0, 0, 0).clamp(-1e19, 1e19) for t in some] for some in (gradients, weights))
    sites = [Site.alone(weight) for weight in weights]
    if isinstance(plugin, w.GroupLasso):
        gradients = [torch.zeros_like(weight) for weight in weights]
        wanted = [plugin.gradient(weight, site) for weight, site in zip(weights, sites, strict=True)]
        plugin.gradient_all_(gradients, weights, sites)
    else:
        wanted = [plugin.edit(g, x, site) for g, x, site in zip(gradients, weights, sites, strict=True)]
        plugin.edit_all_(gradients, weights, sites)
    for found, one in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(found, one, rtol=2e-6, atol=1e-37, equal_nan=True)


@settings(max_examples=50, deadline=None)
@given(shapes, st.sampled_from([1e-3, 1.0, 1e3]), st.integers(0, 10**6))
def test_the_norm_of_all_is_that_of_exact_arithmetic(shapes, scale, seed):
    gradients = [tensor.nan_to_num(0, 0, 0) * (tensor.abs() < 1e9) for tensor in drawn(shapes, seed, scale)]
    exact = torch.cat([gradient.double().reshape(-1) for gradient in gradients]).norm()
    torch.testing.assert_close(one_pass.norm_of(gradients), exact.float(), rtol=3e-7, atol=1e-30)


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_a_norm_that_is_no_number_is_so_by_torch_as_well(value):
    gradients = [torch.ones(3, 3), torch.full((5,), value)]
    torch.testing.assert_close(one_pass.norm_of(gradients), global_norm(gradients), equal_nan=True)


ROW_BY_ROW = {
    "bound_norms_": lambda g, x: one_pass.bound_norms_([x], 0.5, 2.0, 5e-7, 1e15, by_rows=[True]),
    "charged_by_rows_": lambda g, x: one_pass.charged_by_rows_([g], [x], 0.1, by_rows=[True]),
    "clipped_": lambda g, x: one_pass.clipped_([g], 1.0, by_rows=[True]),
    "clipped_adaptively_": lambda g, x: one_pass.clipped_adaptively_([g], [x], 0.9, 1e-3, by_rows=[True]),
}


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(ROW_BY_ROW)),
    st.integers(1, 150),
    st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 1023, 1025, 2500])),
    st.integers(0, 10**6),
)
def test_what_becomes_of_a_row_depends_on_no_other(name, rows, length, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(rows, 1, generator=generator) * 4 / length**0.5
    gradient, weight = (torch.randn(rows, length, generator=generator) * sizes for _ in range(2))
    alone = [(g.clone(), x.clone()) for g, x in zip(gradient.split(1), weight.split(1), strict=True)]
    start = weight.clone()
    assert not len(ROW_BY_ROW[name](gradient, weight))
    for g, x in alone:
        ROW_BY_ROW[name](g, x)
    assert_same_bits([gradient, weight], [torch.cat(column) for column in zip(*alone, strict=True)])
    is_written = (weight != start).any(dim=1) if name == "bound_norms_" else torch.zeros(rows, dtype=torch.bool)
    inside = (start.double().norm(dim=1) - 1.25).abs() < 0.75
    assert not (is_written & inside).any()


def test_a_short_row_that_is_inside_keeps_its_bits_beside_those_that_are_not():
    weight = torch.full((8, 4), 3.0)
    inside = torch.tensor([-0.0, 1e-42, 0.5, -1e-38])
    weight[::2] = inside
    assert not len(one_pass.bound_norms_([weight], 0.0, 1.0, 0.0, 1e15, by_rows=[True]))
    assert_same_bits([weight[::2]], [inside.expand(4, 4)])
    torch.testing.assert_close(weight[1::2], torch.full((4, 4), 0.5))


def test_what_is_inside_keeps_its_bits_where_subnormal_numbers_are_flushed():
    weight = torch.full((8, 4), 3.0)
    inside = torch.tensor([-0.0, 1e-42, 0.5, -1e-38])
    weight[::2] = inside
    assert torch.set_flush_denormal(True)
    try:
        left = one_pass.bound_norms_([weight], 0.0, 1.0, 0.0, 1e15, by_rows=[True])
    finally:
        torch.set_flush_denormal(False)
    assert not len(left)
    assert_same_bits([weight[::2]], [inside.expand(4, 4)])


def test_editors_come_out_the_same_on_any_number_of_threads():
    threads, found = torch.get_num_threads(), []
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in [(7000, 900), (2**17 + 3,), (7, 9)]]
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            gradients, weights = copies(start), copies(start)
            by_rows = [True] * len(start)
            assert not one_pass.clipped_adaptively_(gradients, weights, 0.9, 1e-3, by_rows=by_rows)
            assert not one_pass.charged_(gradients, weights, 0.1, 0.1)
            assert not one_pass.charged_by_rows_(gradients, weights, 0.1, by_rows=by_rows)
            assert not one_pass.clipped_(gradients, 20.0, by_rows=by_rows)
            found.append([*gradients, one_pass.norm_of(gradients)])
    finally:
        torch.set_num_threads(threads)
    for tensors in found[1:]:
        assert_same_bits(tensors, found[0])
    exact = torch.cat([tensor.double().view(-1) for tensor in found[0][:-1]]).norm()
    torch.testing.assert_close(found[0][-1], exact.float(), rtol=3e-7, atol=0)


def test_a_long_row_is_clipped_by_all_of_its_weight():
    """Whose squares, added up in float32, would leave the range of numbers."""
    weight = torch.full((2, 5000), 3e17)
    gradient = weight.clone()
    gradient[:, :4000] = 0
    wanted = gradient * 0.5 * 5**0.5
    gradient *= 2
    assert not one_pass.clipped_adaptively_([gradient], [weight], 0.5, 1e-3, by_rows=[True])
    torch.testing.assert_close(gradient, wanted, rtol=2e-6, atol=0)


def test_a_bias_is_one_unit():
    gradient, weight = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0])
    w.AdaptiveClip(0.5).edit_all_([gradient], [weight], [Site.alone(weight)])
    torch.testing.assert_close(gradient, torch.tensor([0.3, 0.4]))


PLUGINS_OF = {
    "bound_norms_": [w.MaxNorm(0.5), w.MinMaxNorm(0.5, 0.6), w.UnitNorm()],
    "charged_": [w.L1(0.1), w.ElasticNet(0.1, 0.1)],
    "charged_by_rows_": [w.GroupLasso(0.1)],
    "clamped_": [w.Clamp(-0.5, 0.5), w.ClipValue(0.5)],
    "clipped_": [w.ClipUnitNorm(0.5)],
    "clipped_adaptively_": [w.AdaptiveClip(0.1)],
    "norm_of": [w.ClipNorm(0.5)],
    "onto_simplices_": [w.L1Ball(0.5), w.Simplex()],
}
THEIRS = [(name, plugin) for name, plugins in PLUGINS_OF.items() for plugin in plugins]


@pytest.mark.parametrize(("name", "plugin"), THEIRS)
def test_a_plugin_leaves_nothing_to_torch_where_all_are_suited(name, plugin, monkeypatch):
    answers, function = [], getattr(simplices if name == "onto_simplices_" else one_pass, name)

    def watched(*columns, **settings):
        answers.append(function(*columns, **settings))
        return answers[-1]

    monkeypatch.setattr(compiling, "_tried", lambda asked: watched if asked == name else None)
    assert set(PLUGINS_OF) == {*one_pass._TRIALS, "onto_simplices_"}
    assert set(compiling._USERS) == {*PLUGINS_OF, *masks_in_one_pass._TRIALS}
    shapes, generator = [(500, 640), (7,), (4, 3, 2, 2)], torch.Generator().manual_seed(0)
    change(plugin, *([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2)))
    (left,) = answers
    assert isinstance(left, torch.Tensor) if name == "norm_of" else len(left) == 0


def change(plugin, gradients, weights, modules=(None, None, None)):
    """What a plugin writes: weights or gradients."""
    sites = [Site.alone(weight, module) for weight, module in zip(weights, modules, strict=True)]
    with torch.no_grad():
        if isinstance(plugin, Constraint):
            plugin.project_all_(weights, sites)
            return weights
        if isinstance(plugin, Penalty):
            plugin.gradient_all_(gradients, weights, sites)
        else:
            plugin.edit_all_(gradients, weights, sites)
    return gradients


@pytest.mark.parametrize(("name", "plugin"), THEIRS)
@pytest.mark.parametrize("odd", ["columns", "transposed convolution", "double", "half", "none"])
def test_what_is_unlike_the_others_is_left_to_torch_and_the_others_are_not(name, plugin, odd, monkeypatch):
    def given_(seed):
        generator = torch.Generator().manual_seed(seed)
        shapes = [(500, 640), (4, 3, 2, 2), (9,)]  # one of them large, as ClipValue asks of small ones nothing compiled
        first, second, third = (torch.randn(shape, generator=generator) for shape in shapes)
        second = second.transpose(0, 1) if odd == "columns" else second
        return [first, second.double() if odd == "double" else second.half() if odd == "half" else second, third]

    modules = [None, nn.ConvTranspose2d(4, 3, 2) if odd == "transposed convolution" else None, None]
    found = [change(plugin, given_(0), given_(1), modules) for _ in range(2)]
    monkeypatch.setattr(compiling, "_tried", lambda name: None)
    wanted = change(plugin, given_(0), given_(1), modules)
    for one in found:
        torch.testing.assert_close(one, wanted, rtol=2e-3 if odd == "half" else 2e-6, atol=1e-7)


def test_a_subclass_that_writes_a_factor_of_its_own_is_asked():
    class Half(w.ClipUnitNorm):
        def _factors(self, gradient, site):
            return super()._factors(gradient, site) / 2

    class Twice(w.GroupLasso):
        def _rate(self, weight, site):
            return 2 * super()._rate(weight, site)

    gradient, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(change(Half(1.0), [gradient], [weight], [None])[0].norm(), torch.tensor(0.5))
    (charged,) = change(Twice(1.0), [torch.zeros(1, 2)], [weight], [None])
    torch.testing.assert_close(charged, 2 * math.sqrt(2) * weight / 5)


@pytest.mark.parametrize("plugin", [w.L1(1e39), w.ElasticNet(0.1, 1e39)])
def test_what_float32_cannot_hold_is_refused_as_torch_refuses_it(plugin):
    with pytest.raises(RuntimeError, match="without overflow"):
        change(plugin, [torch.ones(2, 2)], [torch.ones(2, 2)], [None])


def test_a_bound_that_is_no_number_is_refused():
    for ends in [(math.inf, math.inf), (None, -math.inf)]:
        with pytest.raises(ConfigurationError, match="no finite number is inside: give None for no bound"):
            w.Clamp(*ends)
    with pytest.raises(ConfigurationError, match="must not be NaN"):
        w.Clamp(low=math.nan)


def test_another_default_device_changes_nothing():
    gradient = torch.full((3,), 5.0)
    with torch.device("meta"):
        change(w.ClipNorm(1.0), [gradient], [gradient], [None])
    torch.testing.assert_close(gradient.norm(), torch.tensor(1.0))


# -------------------------------------------------------------------- which tensors it may be


def inference():
    with torch.inference_mode():
        return torch.full((2, 8), 3.0)


def rows():
    return torch.full((2, 8), 3.0)


class _Hidden(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.data_ptr:
            raise TypeError("it is none of yours")
        return super().__torch_function__(function, types, args, kwargs or {})


def _parts_of_a_nested_one():
    sizes = torch.tensor([[8], [8]])
    return BUFFER.view(-1), sizes, torch.ones_like(sizes), torch.tensor([0, 8])


BUFFER = torch.full((2, 8), 3.0)

UNUSUAL = {
    "columns": lambda: torch.full((8, 2), 3.0).T,
    "half": lambda: rows().bfloat16(),
    "double": lambda: rows().double(),
    "special": lambda: rows().as_subclass(Kept),
    "zeros without memory": lambda: torch._efficientzerotensor((2, 8)),
    "inference": inference,
    "meta": lambda: torch.empty(2, 8, device="meta"),
    "expanded": lambda: torch.ones(1, 8).expand(2, 8),
    "sparse": lambda: rows().to_sparse(),
    "compressed": lambda: rows().to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(8), torch.ones(4)]),
    "not initialized": nn.UninitializedParameter,
    "negated view": lambda: torch._neg_view(rows()),
    "nested in the memory of another": lambda: torch._nested_view_from_buffer(*_parts_of_a_nested_one()),
    "that says not where it is": lambda: rows().as_subclass(_Hidden),
}
"""Of each kind of tensor that is left to torch, one."""


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("kind", list(UNUSUAL))
@pytest.mark.parametrize("with_guards", [True, False])
def test_one_that_is_unusual_is_left_to_torch(kind, with_guards, monkeypatch):
    monkeypatch.setattr(addresses, "_FORMS", {})
    if not with_guards:
        monkeypatch.setattr(addresses, "TensorGuards", None)
    odd, plain = UNUSUAL[kind](), torch.full((2, 8), 3.0)
    assert addresses.memory_of([plain, plain.clone()]) is not None
    for _ in range(2):
        assert addresses.memory_of([plain, odd]).places == [0]
        assert addresses.memory_of([plain, BUFFER, plain.clone()]) is not None
        assert addresses.memory_of([plain, odd, plain.clone()]).places == [0, 2]
        assert addresses.memory_of([plain], [odd]) is None
        assert addresses.memory_of([odd]) is None
        with torch.no_grad():
            assert one_pass.clipped_([plain, odd], 8**0.5, by_rows=[True, True]) == [1]
    torch.testing.assert_close(plain, torch.ones(2, 8))


@pytest.mark.parametrize("with_guards", [True, False])
def test_what_was_seen_before_is_looked_at_again(with_guards, monkeypatch):
    monkeypatch.setattr(addresses, "_FORMS", {})
    if not with_guards:
        monkeypatch.setattr(addresses, "TensorGuards", None)
    parameter = nn.Parameter(torch.arange(16.0).view(4, 4))
    assert addresses.memory_of([parameter]) is None
    with torch.no_grad():
        assert addresses.memory_of([parameter]) is not None
    assert addresses.memory_of([parameter]) is None  # with gradients enabled torch would refuse to write
    with torch.no_grad():
        parameter.data = torch.arange(20.0).view(10, 2)
        memory = addresses.memory_of([parameter])
        assert memory is not None
        assert memory.table.tolist() == [[20], [10], [parameter.data_ptr()]]
        parameter.data = parameter.data.T
        assert addresses.memory_of([parameter]) is None
        parameter.data = torch.ones(2, 10)
        assert addresses.memory_of([parameter], [torch.ones(10, 2)]) is None
        assert addresses.memory_of([parameter], [torch.ones(2, 10)]) is not None
        assert addresses.memory_of([torch.ones(2, 10), parameter]) is not None  # as many, in one column
        assert addresses.memory_of([parameter, parameter]) is not None
        assert addresses.memory_of([parameter, parameter], [parameter]) is None
        for size in range(1, 2 * addresses._KEYS):
            assert addresses.memory_of([torch.ones(size)]) is not None
            assert addresses.memory_of([torch.ones(2), torch.ones(size), torch.ones(2)]) is not None
        assert len(addresses._FORMS) <= addresses._KEYS
        assert max(map(len, addresses._FORMS.values()), default=0) <= addresses._FORMS_OF_A_KEY


def test_each_is_found_where_it_is_now():
    for tensor in (first := torch.ones(3, 5), torch.ones(3, 5), first):
        assert addresses.memory_of([tensor]).table[2].tolist() == [tensor.data_ptr()]
    kept = addresses.memory_of([first])
    addresses.memory_of([torch.ones(3, 5)])
    assert kept.table[2].tolist() == [first.data_ptr()]
    gradient = torch.ones(3, 5)
    for weight in (first, torch.ones(3, 5), first):
        table = addresses.memory_of([gradient], [weight]).table
        assert table[2:].tolist() == [[gradient.data_ptr()], [weight.data_ptr()]]


class Sees(TorchDispatchMode):
    """A mode that does nothing but see."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_where_torch_watches_what_is_done_nothing_has_an_address():
    weight, seen = torch.ones(2, 8), []
    for watched in (Sees(), torch.autograd.graph.allow_mutation_on_saved_tensors(), forward_ad.dual_level()):
        with watched:
            seen.append(compiling.compiled_function("clipped_", [weight]))

    def looks(weight):
        seen.append(compiling.compiled_function("clipped_", [weight]))
        change(w.ClipUnitNorm(0.5), [weight], [weight], [None])
        return weight * 2

    make_fx(looks)(weight.clone())
    torch.testing.assert_close(torch.compile(looks, backend="eager")(weight.clone()), weight / 8**0.5)
    assert seen == [None] * len(seen)
    assert len(seen) > 4
    assert addresses.memory_of([weight]) is not None


def test_few_small_tensors_are_left_to_torch_where_that_is_faster(monkeypatch):
    monkeypatch.undo()
    small, large = [torch.ones(2, 8)], [torch.ones(300, 200)]
    few_for = {"charged_": 15, "clamped_": 69, "norm_of": 15, "clipped_": 0}
    assert set(few_for) == {"clipped_", *compiling._LEAST}
    for name, few in few_for.items():
        assert few == 0 or compiling.compiled_function(name, few * small) is None
        assert compiling.compiled_function(name, (few + 1) * small) is not None
        assert compiling.compiled_function(name, large) is not None


def test_small_gradients_are_clipped_by_torch(monkeypatch):
    monkeypatch.setattr(compiling, "_tried", lambda name: pytest.fail(f"{name} was asked for"))
    gradients = [torch.tensor([-2.0, 0.1, 3.0]) for _ in range(100)]
    change(w.ClipValue(0.5), gradients, gradients, [None] * 100)
    assert all(torch.equal(gradient, torch.tensor([-0.5, 0.1, 0.5])) for gradient in gradients)


@pytest.mark.parametrize("name", list(one_pass._TRIALS))
def test_a_trial_goes_well_wherever_it_is_made(afresh, name, caplog):
    weight = torch.ones(2, 8)
    for place in (torch.inference_mode(), torch.device("meta"), torch.no_grad(), dtype_of_default(torch.float64)):
        compiling._tried.cache_clear()
        with place:
            assert compiling.compiled_function(name, [weight]) is not None
    assert not caplog.records


@contextlib.contextmanager
def dtype_of_default(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def test_inside_transformations_nothing_has_an_address():
    seen = []

    def look(weight):
        seen.append(addresses.memory_of([weight]))
        return weight.sum()

    weight = torch.ones(2, 8)
    for _ in range(2):
        torch.func.vmap(look)(weight)
        torch.func.grad(look)(weight)
        torch.func.functionalize(look)(weight)
        torch.func.jvp(look, (weight,), (weight,))
        assert addresses.memory_of([weight]) is not None  # so that its like is known
        assert addresses.memory_of([weight[0]]) is not None
    assert seen == [None] * 8


# -------------------------------------------------------------------- without Numba


@pytest.fixture
def afresh():
    """Whether Numba works is asked again, before and after."""
    compiling._tried.cache_clear()
    yield
    compiling._tried.cache_clear()


@pytest.mark.parametrize("trouble", ["missing", "all of it missing", "failing", "wrong"])
def test_without_numba_torch_does_it(afresh, trouble, monkeypatch, caplog):
    def fail(*_):
        raise OSError("No space left on device")

    if trouble == "missing":
        monkeypatch.setitem(sys.modules, "numba", None)
        monkeypatch.delitem(sys.modules, "weightsmith_plugins.native.one_pass")
    elif trouble == "all of it missing":  # llvmlite comes with it
        for module in ("numba", "llvmlite", "llvmlite.binding"):
            monkeypatch.setitem(sys.modules, module, None)
        for module in ("one_pass", "pointers", "row_norms"):
            monkeypatch.delitem(sys.modules, f"weightsmith_plugins.native.{module}")
    elif trouble == "failing":
        monkeypatch.setattr(one_pass, "_bound_all", fail)
        monkeypatch.setattr(one_pass, "_clip_all", fail)
    else:
        monkeypatch.setattr(one_pass, "_clip_all", lambda *_: None)
    layer = nn.Linear(8, 4)
    for _ in range(2):
        w.UnitNorm().project_all_([layer.weight.data], [Site.alone(layer.weight)])
        gradient = torch.full((4, 8), 3.0)
        w.ClipUnitNorm(1.0).edit_all_([gradient], [layer.weight], [Site.alone(layer.weight)])
        torch.testing.assert_close(gradient.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(4))
    assert [record.getMessage() for record in caplog.records] == {
        "missing": [],
        "all of it missing": [],
        "failing": [
            "MaxNorm, MinMaxNorm and UnitNorm work the slower way, as Numba fails: OSError: No space left on device",
            "ClipUnitNorm works the slower way, as Numba fails: OSError: No space left on device",
        ],
        "wrong": [
            "ClipUnitNorm works the slower way, as Numba fails: ArithmeticError: clipped_ made [3.0, -4.0] of "
            "[3.0, -4.0], and not [0.6, -0.8]"
        ],
    }[trouble]


def test_half_precision_asks_for_nothing_compiled(afresh):
    weight = torch.full((4, 8), 3.0, dtype=torch.bfloat16)
    w.UnitNorm().project_all_([weight], [Site.alone(weight)])
    assert compiling._tried.cache_info().misses == 0
