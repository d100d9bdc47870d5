"""Constraints where floating point is at its end: half precisions, huge and tiny units, exact zeros, long rows."""

import copy

import pytest
import torch
import weightsmith_plugins as w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from weightsmith import ConfigurationError, ConflictError, Constraint, PluginContractError, Site, Trainer
from weightsmith.rows import LEAST_TOGETHER
from weightsmith.tensors import blocks
from weightsmith_plugins.native import compiling

HALF = torch.bfloat16


@pytest.fixture(params=["torch", "Numba"])
def way(request, monkeypatch):
    """What bounds norms."""
    if request.param == "torch":
        monkeypatch.setattr(compiling, "_tried", lambda name: None)
    else:
        assert compiling.compiled_function("bound_norms_", [torch.ones(1)]) is not None


def held(weight, plugin):
    """The weight of a layer at the start of a run, and what the trainer says of it."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    trainer = Trainer(layer, torch.optim.SGD(layer.parameters(), lr=0.0), nn.MSELoss(), plugins=[plugin], seed=0)
    trainer._start()
    return layer.weight.detach(), max(trainer.violations().values())


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# -------------------------------------------------------------------- half precision is no excuse


def test_a_grid_is_kept_in_bfloat16():
    weight, violation = held(random(4, 32, dtype=HALF), w.Grid(8))
    places = weight.float() / weight.float().abs().amax(1, keepdim=True) * 127
    assert violation == 0
    assert ((places - places.round()).abs() <= 127 * torch.finfo(HALF).eps).all()
    assert not torch.equal(weight, random(4, 32, dtype=HALF))


def test_a_mean_is_taken_away_in_bfloat16():
    start = (0.1 * random(4, 1024) + 0.013).to(HALF)
    weight, _ = held(start, w.ZeroMean())
    assert (weight.float().mean(1).abs() <= 1e-4).all()


@pytest.mark.parametrize("plugin", [w.L1Ball(1.0), w.Simplex()], ids=repr)
def test_a_sum_of_many_small_values_is_bounded_in_bfloat16(plugin):
    start = torch.full((1, 1001), 0.003)
    start[0, 0] = 0.5
    weight, _ = held(start.to(HALF), plugin)
    assert weight.float().abs().sum().item() == pytest.approx(1.0, abs=0.01)


def test_a_largest_singular_value_is_bounded_in_bfloat16():
    start = random(128, 128)
    start = (start * 1.05 / torch.linalg.matrix_norm(start, 2)).to(HALF)
    weight, _ = held(start, w.SpectralBound(1.0))
    assert torch.linalg.matrix_norm(weight.float(), 2) <= 1.02


def test_momentum_at_the_limit_loses_its_outward_part_in_bfloat16():
    plugin = w.MaxNorm(1.0, momentum="tangent")
    weight = plugin(random(50, 40, dtype=HALF))
    tangent = plugin.tangent(weight.clone(), weight, Site.alone(weight))
    assert (tangent.float().norm(dim=1) <= 0.02).all()


# -------------------------------------------------------------------- values far from 1


def test_a_positive_definite_matrix_has_a_cholesky_factor():
    weight, violation = held(torch.tensor([[1.0, 0.0], [0.0, -5e-6]]), w.PositiveDefinite())
    assert torch.linalg.cholesky_ex(weight).info == 0
    assert violation == 0


@pytest.mark.parametrize("scale", [1e6, 1e8])
def test_a_simplex_is_reached_from_afar(scale):
    found = w.Simplex()(torch.tensor([[scale, scale, 0.0]]))
    assert torch.equal(found, torch.tensor([[0.5, 0.5, 0.0]]))
    assert w.L1Ball(1.0)(torch.tensor([[scale, -scale, 0.0]])).abs().sum() == 1


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e25, 1e37])
@pytest.mark.parametrize("plugin", [w.UnitNorm(), w.MinMaxNorm(0.5, 1.0), w.MaxNorm(1e-3)], ids=repr)
def test_units_whose_squares_leave_the_float_range(way, plugin, scale):
    direction = torch.tensor([[3.0, 4.0], [5.0, 12.0]]) / torch.tensor([[5.0], [13.0]])
    (found,) = [direction * scale]
    plugin.project_all_([found], [Site.alone(found)])
    norms = (direction.double() * scale).norm(dim=1)
    wanted = plugin.bounded(norms).float()
    torch.testing.assert_close(found.double().norm(dim=1).float(), wanted, rtol=1e-2 if scale < 1e-38 else 1e-5, atol=0)


@pytest.mark.parametrize(("density", "kept"), [(0.07, 7), (0.55, 55), (0.14, 14), (0.28, 28), (0.071, 8)])
def test_top_k_keeps_as_many_as_it_says(density, kept):
    assert w.TopK(density)(random(10, 10)).count_nonzero() == kept


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([w.MaxNorm(0.7), w.UnitNorm(), w.MinMaxNorm(0.5, 0.9), w.ZeroMean(), w.L1Ball(1.0), w.Simplex()]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.integers(1, 40),
    st.integers(1, 3000),
    st.integers(0, 10**6),
)
def test_projecting_again_changes_no_bit(way, plugin, dtype, units, size, seed):
    weight = random(units, size, seed=seed, dtype=dtype)
    site = Site.alone(weight)
    plugin.project_all_([weight], [site])
    once = weight.clone()
    for _ in range(3):
        plugin.project_all_([weight], [site])
    assert torch.equal(weight, once)


@pytest.mark.parametrize(
    "plugin", [w.MaxNorm(0.5), w.UnitNorm(), w.ZeroMean(), w.Grid(4), w.L1Ball(1.0), w.Clamp(-0.1)]
)
def test_many_small_weights_at_once_are_projected_as_each_alone(way, plugin):
    shapes = [(8, 16), (3, 16), (4, 4, 2, 2), (16,), (5, 7), (5, 7), (300, 200), (2, 16)]
    weights = [random(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    wanted = [plugin(weight) for weight in weights]
    plugin.project_all_(weights, [Site.alone(weight) for weight in weights])
    for found, one in zip(weights, wanted, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-6, atol=1e-7)


def test_the_largest_of_a_long_row_are_found_exactly_with_ties_and_in_any_order():
    values = random(2**20 + 77, seed=3)
    values[1000:400_000] = values[1000]  # many equal ones
    for row in (values, values.sort().values, values.abs().bfloat16().float()):
        magnitudes = row.abs().unsqueeze(0)
        for density in (0.001, 0.2, 0.6, 0.999):
            count = int(density * magnitudes.numel())
            found = w.TopK(count / magnitudes.numel())(row.unsqueeze(0))
            order = magnitudes[0].argsort(descending=True, stable=True)[:count]
            mask = torch.zeros_like(row, dtype=torch.bool).index_fill_(0, order, True)
            assert torch.equal(found[0], row.masked_fill(~mask, 0))


@pytest.mark.parametrize("shape", [(300, 300), (20, 20)])
def test_gradients_flow_through_what_top_k_keeps_alone(way, shape):
    """Where it is called while gradients are enabled; a parameter is refused then, as by any write in place."""
    leaf = random(*shape).requires_grad_()
    weight = leaf * 1
    w.TopK(0.25).project_all_([weight], [Site.alone(weight.detach())])
    weight.sum().backward()
    assert torch.equal(leaf.grad != 0, weight != 0)
    assert int(leaf.grad.count_nonzero()) == leaf.numel() // 4
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        w.TopK(0.25).project_all_([leaf], [Site.alone(leaf.detach())])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, HALF])
def test_what_is_sparse_enough_stays_as_it_is(way, dtype):
    """Bit for bit, and its version too, so that nothing that autograd kept of it is lost."""
    weight = random(400, 300, dtype=dtype)
    w.TopK(0.2).project_all_([weight], [Site.alone(weight)])
    for density in (0.2, 0.3):
        once, version = weight.clone(), weight._version
        w.TopK(density).project_all_([weight], [Site.alone(weight)])
        assert torch.equal(weight, once)
        assert dtype is HALF or weight._version == version


def test_top_k_counts_what_the_processor_takes_for_zero(way):
    """Numbers below the smallest normal one are there for whoever computes with them."""
    weight = torch.zeros(200, 200)
    weight.view(-1)[:10] = 1.0
    weight.view(torch.int32).view(-1)[100:30_000] = 5
    if not torch.set_flush_denormal(True):
        pytest.skip("the processor cannot flush")
    try:
        w.TopK(0.1).project_all_([weight], [Site.alone(weight)])
    finally:
        torch.set_flush_denormal(False)
    assert weight.count_nonzero() <= 4000
    assert (weight.view(-1)[:10] == 1).all()


# -------------------------------------------------------------------- intersections


@pytest.mark.parametrize("parts", [(w.Clamp(-0.5, 0.5), w.L1Ball(3.0)), (w.ZeroMean(), w.Clamp(-0.2, 0.4))], ids=repr)
@pytest.mark.parametrize("shape", [(700, 400), (5, 70_000), (300, 128, 3, 3)])
def test_units_of_a_large_weight_are_projected_as_all_together(way, parts, shape):
    """In many rounds, some units at a time; also where a value of the last is no number."""
    plugin, weight = w.Intersection(*parts), 0.1 * random(*shape)
    site = Site.alone(weight)
    assert len(list(blocks(weight, by_rows=True))) > 1
    torch.testing.assert_close(plugin(weight), plugin._project_together(weight, site), rtol=1e-5, atol=1e-7)
    spoilt = weight.clone()
    spoilt[-1].view(-1)[0] = torch.nan
    found = plugin(spoilt)
    assert found[-1].isnan().any()
    torch.testing.assert_close(found[:-1], plugin(weight)[:-1], rtol=1e-5, atol=1e-7)


def test_units_that_have_no_common_point_are_found_in_any_part_of_a_large_weight():
    weight = torch.zeros(700, 400)
    weight[-1] = 1.0
    with pytest.raises(ConflictError, match="have no common point"):
        w.Intersection(w.Clamp(low=0.1), w.MaxNorm(0.5))(weight)


@pytest.mark.parametrize(
    ("parts", "holds"),
    [
        ((w.TopK(0.1), w.SpectralBound(0.5)), lambda x: x.count_nonzero() <= 410),
        ((w.TopK(0.1), w.ZeroMean()), lambda x: x.count_nonzero() <= 410),
        ((w.NofM(2, 4), w.MaxNorm(0.5)), lambda x: (x.reshape(-1, 4) != 0).sum(1) <= 2),
        ((w.NonNegative(), w.SpectralBound(1.0)), lambda x: x >= 0),
        ((w.LowerTriangular(), w.MaxNorm(0.5)), lambda x: x == x.tril()),
        ((w.LowerTriangular(), w.ZeroMean()), lambda x: (x == x.tril()) & (x.mean(1).abs() <= 1e-6)),
        ((w.NonNegative(), w.ZeroMean()), lambda x: x == 0),
    ],
    ids=lambda value: " and ".join(map(repr, value)) if isinstance(value, tuple) else "",
)
def test_an_intersection_keeps_its_exact_sets_exactly(parts, holds):
    weight, violation = held(random(64, 64), w.Intersection(*parts))
    assert bool(holds(weight).all())
    assert violation == 0


@pytest.mark.parametrize("plugin", [w.UnitNorm(), w.MinMaxNorm(0.5, 1.0), w.MaxNorm(1.0)], ids=repr)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_unit_that_is_not_finite_is_given_no_other_direction(bad, plugin):
    weight = random(2, 4)
    weight[0, 1] = bad
    found = plugin(weight)
    assert found[0].isnan().any()
    assert torch.equal(found[1], plugin(weight[1:])[0])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_conflict_is_reported_where_a_value_is_not_finite(bad):
    weight = random(4, 4)
    weight[1, 2] = bad
    found = w.Intersection(w.TopK(0.5), w.UnitNorm())(weight)
    torch.testing.assert_close(found, w.UnitNorm()(w.TopK(0.5)(weight)), equal_nan=True)


def test_an_intersection_acts_in_bfloat16():
    weight, _ = held(torch.tensor([[0.9, -0.02]], dtype=HALF), w.Intersection(w.NonNegative(), w.MaxNorm(1.0)))
    assert (weight >= 0).all()


# -------------------------------------------------------------------- in the forward pass


@pytest.mark.parametrize("limit", [{"after": "10 epochs"}, {"before": 5}, {"every": 2}, {"at": "EPOCH_COMPLETED"}])
def test_a_forward_pass_has_no_times(limit):
    with pytest.raises(ConfigurationError, match="in every forward pass"):
        held(random(3, 4), w.MaxNorm(0.1, mode="forward", **limit))


def test_orthonormal_computes_the_same_layer_with_and_without_gradients():
    layer = nn.Linear(6, 4, bias=False)
    Trainer(layer, torch.optim.SGD(layer.parameters(), lr=0.1), nn.MSELoss(), plugins=[w.Orthonormal(mode="forward")])
    trained = layer.weight.detach()
    with torch.no_grad():
        assert torch.equal(layer.weight, trained)
    lame = nn.Linear(6, 4, bias=False)
    nn.init.zeros_(lame.weight)
    with pytest.raises(ConfigurationError, match=r"(?s)too low a rank.*weight 'weight'"):
        Trainer(lame, torch.optim.SGD(lame.parameters()), nn.MSELoss(), plugins=[w.Orthonormal(mode="forward")])


def test_what_was_made_orthonormal_from_afar_stays_bit_for_bit():
    start = torch.linalg.qr(random(700, 600))[0]
    found = w.Orthonormal()(start + 0.1 * random(700, 600, seed=1) / (600**0.5 + 700**0.5))
    assert torch.equal(w.Orthonormal()(found), found)


@pytest.mark.parametrize("plugin", [w.UnitNorm(), w.Simplex(), w.Orthonormal()], ids=repr)
def test_the_vector_of_padding_stays_as_it_is(plugin):
    layer = nn.Embedding(4, 6, padding_idx=1)
    trainer = Trainer(layer, torch.optim.SGD(layer.parameters(), lr=0.0), nn.MSELoss(), plugins=[plugin])
    trainer._start()
    assert not layer.weight[1].any()
    others = layer.weight[[0, 2, 3]].detach()
    torch.testing.assert_close(plugin(others), others)
    assert max(trainer.violations().values()) == 0


def test_the_vector_of_padding_stays_as_it_is_in_an_average_too(tmp_path):
    layer = nn.Embedding(5, 4, padding_idx=0)
    plugins = [w.UnitNorm(), w.EMA(0.5)]
    trainer = Trainer(
        layer, torch.optim.SGD(layer.parameters(), lr=0.1), lambda found, _: found.square().sum(), plugins=plugins
    )
    trainer.run([(torch.arange(5), torch.zeros(5))] * 3)
    trainer.export(tmp_path / "mean.safetensors", averaged=True)
    (mean,) = load_file(tmp_path / "mean.safetensors").values()
    torch.testing.assert_close(mean.norm(dim=1), torch.tensor([0.0, 1, 1, 1, 1]))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_a_weight_of_nothing_is_in_every_set(way, shape):
    weight = torch.empty(shape)
    w.MaxNorm(1.0).project_all_([weight], [Site.alone(weight)])


def test_what_is_one_weights_is_refused_of_many_at_once():
    class Slowing(Constraint):
        unitwise = True

        def project(self, weight, site):
            return weight / (1 + site.update)

    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(LEAST_TOGETHER)))
    trainer = Trainer(layers, torch.optim.SGD(layers.parameters(), lr=0.0), nn.MSELoss(), plugins=[Slowing()])
    with pytest.raises(PluginContractError, match=r"sees many weights at once, and site\.update is one weight's"):
        trainer._start()


@pytest.mark.parametrize("plugin", [w.MaxNorm(0.5), w.UnitNorm(), w.ZeroMean(), w.Simplex(), w.TopK(0.4)], ids=repr)
def test_small_weights_with_padding_are_projected_together_as_each_alone(way, plugin):
    def started(layers):
        trainer = Trainer(layers, torch.optim.SGD(layers.parameters(), lr=0.0), nn.MSELoss(), plugins=[plugin])
        trainer._start()
        return {name: weight.detach() for name, weight in layers.named_parameters()}

    layers = nn.ModuleDict(
        {
            "padded": nn.Embedding(4, 6, padding_idx=1),
            "second": nn.Embedding(4, 6, padding_idx=3),
            "shorter": nn.Linear(6, 3, bias=False),
            "linear": nn.Linear(6, 4, bias=False),
        }
    )
    alone = {}
    for name, layer in layers.items():
        (alone[f"{name}.weight"],) = started(copy.deepcopy(layer)).values()
    together = started(layers)
    assert not together["padded.weight"][1].any()
    for name, weight in together.items():
        torch.testing.assert_close(weight, alone[name], rtol=0, atol=1e-7)


# -------------------------------------------------------------------- weights so large that another path is taken


@pytest.mark.parametrize("plugin", [w.MaxNorm(1.0), w.MinMaxNorm(0.5, 1.0), w.UnitNorm(), w.ZeroMean()])
@pytest.mark.parametrize("shape", [(1024, 700), (300, 128, 3, 3), (700, 1024)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_large_weight_is_projected_as_its_units_are(way, plugin, shape, scale):
    scale = scale**0.5 if isinstance(plugin, w.ZeroMean) else scale  # its rounding goes by squares
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.1) * scale
    wanted = torch.cat([plugin(part) for part in weight.split(10)])  # few units at a time: the other path
    found = weight.clone()
    site = Site.alone(found)
    plugin.project_all_([found], [site])
    peaks = wanted.abs().amax()
    assert (found - wanted).abs().amax() <= 1e-6 * peaks
    again = found.clone()
    plugin.project_all_([again], [site])
    assert torch.equal(again, found)  # inside, it stays bit for bit


def test_of_a_large_weight_whose_first_unit_is_inside_the_others_are_centred():
    weight = torch.randn(1024, 700, generator=torch.Generator().manual_seed(0))
    weight[0] -= weight[0].double().mean().float()
    weight[1] = 0
    w.ZeroMean().project_all_([weight], [Site.alone(weight)])
    assert weight.double().mean(1).abs().amax() <= 1e-7


@pytest.mark.parametrize("plugin", [w.SpectralBound(1.0), w.LowRank(1), w.PositiveDefinite(0.1)])
def test_what_is_not_finite_is_outside_every_spectral_set(plugin):
    weight = torch.eye(4)
    weight[0, 1] = torch.inf
    inside = torch.ones(4, 4) / 4 if isinstance(plugin, w.LowRank) else 0.5 * torch.eye(4)
    both = [weight.clone(), inside.clone()]
    plugin.project_all_(both, [Site.alone(one) for one in both])
    assert both[0].isnan().any()
    assert torch.equal(both[1], inside)


@pytest.mark.parametrize("plugin", [w.MagnitudePruning(0.5), w.MagnitudePruning(0.5, "2:4"), w.TopK(0.5), w.NofM()])
def test_a_weight_that_is_not_a_number_is_not_swept_under_the_mask(plugin):
    layer = nn.Linear(16, 16)
    with torch.no_grad():
        layer.weight[3, 5] = torch.nan
    trainer = Trainer(layer, torch.optim.SGD(layer.parameters(), lr=0.0), nn.MSELoss(), plugins=[plugin])
    trainer._start()
    assert layer.weight[3, 5].isnan()
    assert int((layer.weight == 0).sum()) == 128


@given(
    st.sampled_from([w.MaxNorm(0.7), w.UnitNorm(), w.MinMaxNorm(0.5, 1.3)]),
    st.sampled_from([torch.float32, torch.float64, HALF]),
    st.integers(1, 200),
    st.integers(0, 10**6),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_left_alone_near_the_border_counts_as_inside(way, plugin, dtype, size, seed):
    far = 1 + torch.rand(8, 1, generator=torch.Generator().manual_seed(seed)) * 8 * torch.finfo(dtype).eps
    border = getattr(plugin, "limit", getattr(plugin, "high", 1.0))
    units = random(8, size, seed=seed, dtype=torch.float64)
    weight = (units / units.norm(dim=1, keepdim=True) * border * far).to(dtype)
    site = Site.alone(weight, nn.Linear(size, 8))
    plugin.project_all_([weight], [site])
    assert plugin.holds(weight, site)
    again = weight.clone()
    plugin.project_all_([again], [site])
    assert torch.equal(again, weight)
    assert torch.equal(plugin(weight), weight)
