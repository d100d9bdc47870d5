"""Constraints against SciPy, brute force, and the inequality that tells the nearest point of a convex set."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
import weightsmith_plugins as w
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from weightsmith import ConfigurationError, ConflictError, Site, Trainer
from weightsmith.tensors import unit_norms

CONVEX = [
    w.Clamp(-0.3, 0.5),
    w.NonNegative(),
    w.MaxNorm(0.7),
    w.ZeroMean(),
    w.L1Ball(0.9),
    w.Simplex(2.0),
    w.SpectralBound(0.8),
    w.Symmetric(),
    w.SkewSymmetric(),
    w.PositiveDefinite(0.2),
    w.LowerTriangular(),
    w.Intersection(w.NonNegative(), w.MaxNorm(0.7)),
    w.Intersection(w.ZeroMean(), w.Clamp(-0.2, 0.4)),
    w.Intersection(w.PositiveDefinite(0.1), w.Clamp(-1.0, 1.0), w.SpectralBound(1.5)),
]


def trainer_of(model, *plugins, lr=0.1, optimizer=None):
    def step(trainer, batch):
        return trainer.update(lambda: (model(batch) - 1).square().mean())

    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return Trainer(model, optimizer, step=step, plugins=plugins, seed=0)


@pytest.mark.parametrize("plugin", CONVEX, ids=repr)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 1.0, 10.0]))
@settings(max_examples=25, deadline=None)
def test_no_point_of_a_convex_set_is_nearer(plugin, seed, scale):
    """P is nearest if ⟨w − P, x − P⟩ ≤ 0 for every x of the set (Bauschke & Combettes, 2011, theorem 3.16)."""
    assert isinstance(plugin, w.Intersection) or type(plugin).convex
    generator = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    nearest = plugin(weight)
    for size in (0.1, 1.0, 3.0):
        other = plugin(size * torch.randn(4, 4, generator=generator, dtype=torch.float64))
        assert ((weight - nearest) * (other - nearest)).sum() <= 1e-6 * scale


@pytest.mark.parametrize(("plugin", "equality"), [(w.L1Ball(0.8), False), (w.Simplex(0.8), True)], ids=repr)
def test_sums_are_bounded_as_scipy_finds(plugin, equality):
    rng = np.random.default_rng(0)
    for _ in range(5):
        row = rng.normal(size=4)
        if equality:
            bound = {"type": "eq", "fun": lambda v: v.sum() - 0.8}
        else:
            bound = {"type": "ineq", "fun": lambda v: 0.8 - np.abs(v).sum()}
        found = scipy.optimize.minimize(
            lambda v, row=row: ((v - row) ** 2).sum(),
            np.full(4, 0.2) * (1 if equality else np.sign(row)),
            constraints=[bound],
            bounds=[(0, None)] * 4 if equality else None,
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        assert np.allclose(plugin(torch.from_numpy(row[None]))[0].numpy(), found.x, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 3)])
def test_orthonormal_is_scipys_polar_factor_in_both_modes(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64)
    wanted = torch.from_numpy(scipy.linalg.polar(weight.numpy())[0])
    assert torch.allclose(w.Orthonormal()(weight), wanted, atol=1e-12)
    assert torch.allclose(w.Orthonormal()(weight.clone().requires_grad_()), wanted, atol=1e-10)


def test_orthonormals_gradient_is_right_and_finite_at_the_identity():
    assert torch.autograd.gradcheck(w.Orthonormal(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True))
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
    trainer_of(layer, w.Orthonormal(mode="forward")).run([torch.randn(5, 4)])
    assert torch.allclose(layer.weight @ layer.weight.T, torch.eye(4), atol=1e-5)
    assert not torch.allclose(layer.weight, torch.eye(4), atol=1e-4)


def test_each_gate_is_made_orthonormal_on_its_own():
    layer = nn.GRU(3, 5)
    made = w.Orthonormal()(layer.weight_hh_l0, site=Site.alone(layer.weight_hh_l0, layer))
    for gate in made.detach().chunk(3):
        assert torch.allclose(gate @ gate.T, torch.eye(5), atol=1e-5)


def test_low_rank_is_numpys_truncated_decomposition():
    weight = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    left, values, right = np.linalg.svd(weight.flatten(1).numpy(), full_matrices=False)
    assert np.allclose(w.LowRank(2)(weight).flatten(1).numpy(), left[:, :2] * values[:2] @ right[:2])


def test_top_k_is_the_nearest_of_all_sparse_points():
    weight = torch.tensor([[0.5, -2.0, 0.5], [1.0, 0.1, -0.5]])
    points = []
    for kept in itertools.combinations(range(6), 3):
        mask = torch.zeros(6)
        mask[list(kept)] = 1
        points.append(weight * mask.reshape(2, 3))
    least = min((point - weight).norm() for point in points)
    found = w.TopK(0.5)(weight)
    assert (found - weight).norm() == least
    assert torch.equal(found, torch.tensor([[0.5, -2.0, 0.0], [1.0, 0.0, 0.0]]))  # of equal ones the first


def test_two_of_four_along_the_inputs_of_a_convolution():
    weight = torch.randn(3, 8, 2, 2)
    found = w.NofM(2, 4)(weight)
    groups = found.permute(0, 2, 3, 1).reshape(-1, 4)
    whole = weight.permute(0, 2, 3, 1).reshape(-1, 4)
    assert (groups.count_nonzero(1) == 2).all()
    assert torch.equal(groups.abs().sum(1), whole.abs().topk(2, dim=1).values.sum(1))
    with pytest.raises(ConfigurationError, match=r"number of inputs .axis 1. that 4 divides"):
        w.NofM(2, 4)(torch.randn(3, 6))


def test_every_value_goes_to_the_nearest_of_the_grid():
    weight = torch.randn(5, 7, dtype=torch.float64)
    peaks = weight.abs().amax(1, keepdim=True)
    steps = torch.arange(-7, 8, dtype=torch.float64) / 7
    grid = (peaks[..., None] * steps).expand(5, 7, 15)
    nearest = grid.gather(2, (grid - weight[..., None]).abs().argmin(2, keepdim=True))[..., 0]
    assert torch.allclose(w.Grid(4)(weight), nearest)


def test_grid_is_straight_through_in_the_forward_pass():
    layer = nn.Linear(4, 3, bias=False)
    trainer = trainer_of(layer, w.Grid(3, mode="forward"))
    raw = trainer.weights()["weight"]
    layer(torch.eye(4)).sum().backward()
    assert torch.equal(raw.grad, torch.ones(3, 4))


@pytest.mark.parametrize("kind", [w.SpectralBound, w.LowRank])
def test_where_there_is_no_useful_gradient_forward_mode_is_refused(kind):
    with pytest.raises(ConfigurationError, match="no useful gradient"):
        trainer_of(nn.Linear(3, 3, bias=False), kind(1, mode="forward"))


@pytest.mark.parametrize("plugin", [w.MaxNorm(0.5), w.UnitNorm()], ids=repr)
def test_a_hundred_thousand_projections_do_not_drift(plugin):
    torch.manual_seed(0)
    weight = plugin(torch.randn(3, 4))
    start, site = weight.clone(), [Site.alone(weight)]
    with torch.no_grad():
        for _ in range(100_000):
            plugin.project_all_([weight], site)
    assert (weight - start).abs().max() <= 1e-6


class TestTangent:
    @pytest.mark.parametrize(
        "plugin",
        [
            w.Clamp(-0.3, 0.4, momentum="tangent"),
            w.NonNegative(momentum="tangent"),
            w.MaxNorm(0.5, momentum="tangent"),
            w.UnitNorm(momentum="tangent"),
            w.ZeroMean(momentum="tangent"),
            w.Orthonormal(momentum="tangent"),
            w.Symmetric(momentum="tangent"),
            w.SkewSymmetric(momentum="tangent"),
            w.LowerTriangular(momentum="tangent"),
        ],
        ids=repr,
    )
    def test_moving_along_it_stays_in_the_set_to_first_order(self, plugin):
        torch.manual_seed(0)
        weight = plugin(2 * torch.randn(4, 4, dtype=torch.float64))
        site = Site.alone(weight)
        velocity = torch.randn(4, 4, dtype=torch.float64)
        tangent = plugin.tangent(velocity, weight, site)
        for size in (1e-4, 1e-5):
            moved = weight + size * tangent
            assert (plugin(moved) - moved).abs().max() <= 20 * size**2
        # It is the nearest such direction: what was taken away is orthogonal to it.
        assert ((velocity - tangent) * tangent).sum().abs() <= 1e-9

    @pytest.mark.parametrize("kind", ["SGD", "Adam"])
    def test_the_optimizers_momentum_loses_what_points_out(self, kind):
        layer = nn.Linear(4, 3, bias=False)
        options = {"momentum": 0.9} if kind == "SGD" else {}
        optimizer = getattr(torch.optim, kind)(layer.parameters(), lr=0.1, **options)
        trainer_of(layer, w.UnitNorm(momentum="tangent"), optimizer=optimizer).run([torch.randn(5, 4)] * 4)
        name = "momentum_buffer" if kind == "SGD" else "exp_avg"
        momentum = optimizer.state[layer.weight][name]
        assert momentum.abs().max() > 1e-3
        assert (momentum * layer.weight).sum(1).abs().max() <= 1e-6

    def test_where_it_is_not_defined_it_is_refused(self):
        for plugin in (w.TopK(0.5, momentum="tangent"), w.UnitNorm(momentum="tangent", mode="forward")):
            with pytest.raises(ConfigurationError, match="momentum='tangent' is for mode='project'"):
                trainer_of(nn.Linear(3, 3, bias=False), plugin)


class TestIntersection:
    def test_it_is_nearer_than_projecting_in_turn(self):
        torch.manual_seed(0)
        first, second = w.ZeroMean(), w.Clamp(-0.2, 0.4)
        weight = torch.randn(3, 6, dtype=torch.float64)
        nearest = w.Intersection(first, second)(weight)
        in_turn = weight
        for _ in range(2000):
            in_turn = second(first(in_turn))
        assert (nearest - weight).norm() < (in_turn - weight).norm() - 1e-3

    def test_an_empty_one_is_found_before_the_first_batch_and_named(self):
        layer = nn.Linear(4, 3, bias=False)
        seen = []

        def batches():
            seen.append(1)
            yield torch.randn(2, 4)

        trainer = trainer_of(layer, w.Intersection(w.Clamp(low=1.0), w.MaxNorm(0.5)))
        with pytest.raises(ConflictError, match=r"Clamp.low=1\.0. and MaxNorm.limit=0\.5. have no common.*'weight'"):
            trainer.run(batches(), epoch_length=1)
        assert trainer.state.iteration == 0

    def test_it_is_kept_while_training(self):
        layer = nn.Linear(6, 3, bias=False)
        plugin = w.Intersection(w.NonNegative(), w.MaxNorm(0.5))
        trainer = trainer_of(layer, plugin, lr=0.5)
        trainer.run([torch.randn(5, 6)] * 10)
        assert (layer.weight >= 0).all()
        assert (unit_norms(layer.weight.detach(), (1,)) <= 0.5 + 1e-6).all()
        assert trainer.violations() == {(plugin, "weight"): 0.0}

    @pytest.mark.parametrize("shape", [(1400, 400), (300, 128, 3, 3), (300_000,), (2, 300_000)])
    def test_units_of_a_large_weight_are_those_of_a_small_one(self, shape):
        """Of a cone and a ball around its tip, what is nearest is nearest in the ball to what is so in the cone."""
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        found = w.Intersection(w.NonNegative(), w.MaxNorm(0.5))(weight)
        rows = weight.clamp(min=0).double().reshape(shape[0] if len(shape) > 1 else 1, -1)
        nearest = rows * (0.5 / rows.norm(dim=1, keepdim=True)).clamp(max=1)
        torch.testing.assert_close(found.double(), nearest.reshape(shape), rtol=1e-6, atol=0)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: w.Intersection(w.NonNegative()), "two constraints or more"),
            (lambda: w.Intersection(w.NonNegative(), w.L2(0.1)), "two constraints or more"),
            (lambda: w.Intersection(w.NonNegative(), w.MaxNorm(1.0, every=2)), "belong to the Intersection"),
        ],
    )
    def test_what_is_no_intersection_is_told(self, make, message):
        with pytest.raises(ConfigurationError, match=message):
            make()
