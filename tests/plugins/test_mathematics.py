"""The built-in plugins' formulas against torch's own functions, SciPy and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
import weightsmith_plugins as w
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from weightsmith import ConfigurationError, Site, Trainer

LAYERS = [nn.Linear(7, 12), nn.Conv2d(3, 8, 3), nn.Conv2d(4, 8, 3, groups=2), nn.Conv1d(5, 6, 4)]


def least_squares(model, **options):
    """A trainer whose gradient of the one weight is known: the loss is ⟨weight, slope⟩."""

    def step(trainer, slope):
        return trainer.update((model.weight * slope).sum())

    optimizer = options.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=options.pop("lr", 0.1))
    return Trainer(model, optimizer, step=step, **options)


class TestInitializers:
    @pytest.mark.parametrize("layer", LAYERS, ids=str)
    @pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
    def test_kaiming_normal_has_the_standard_deviation_of_torch(self, layer, mode):
        drawn = w.KaimingNormal(mode, "leaky_relu", 0.2)(layer.weight, site=Site.alone(layer.weight, layer))
        fan = nn.init._calculate_correct_fan(layer.weight, mode)
        std = nn.init.calculate_gain("leaky_relu", 0.2) / math.sqrt(fan)
        assert scipy.stats.kstest(drawn.flatten().numpy(), "norm", args=(0, std)).pvalue > 1e-3

    def test_kaiming_normal_keeps_the_variance_of_a_transposed_convolution(self):
        layer = nn.ConvTranspose2d(32, 24, 3, bias=False)
        with torch.no_grad():
            layer.weight.copy_(
                w.KaimingNormal(nonlinearity="linear")(layer.weight, site=Site.alone(layer.weight, layer))
            )
            torch.manual_seed(0)
            interior = layer(torch.randn(64, 32, 12, 12))[:, :, 2:-2, 2:-2]
        assert interior.var().item() == pytest.approx(1.0, rel=0.1)

    @pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 3, 2, 2)])
    def test_orthogonal_draws_what_torch_draws(self, shape):
        weight = torch.empty(shape)
        site = Site.alone(weight, seed=5)
        wanted = torch.empty(shape)
        nn.init.orthogonal_(wanted, 1.3, generator=Site.alone(weight, seed=5).generator)
        assert torch.equal(w.Orthogonal(1.3)(weight, site=site), wanted)

    @pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM(5, 6), 4), (nn.GRU(5, 6), 3), (nn.RNN(5, 6), 1)])
    def test_orthogonal_draws_every_gate_on_its_own(self, layer, gates):
        weight = layer.weight_hh_l0
        drawn = w.Orthogonal()(weight, site=Site.alone(weight, layer)).double()
        for block in drawn.chunk(gates):
            assert torch.allclose(block @ block.T, torch.eye(6, dtype=torch.float64), atol=1e-6)
        assert len({block.flatten()[0].item() for block in drawn.chunk(gates)}) == gates

    def test_orthogonal_takes_a_transposed_convolutions_outputs_as_rows(self):
        layer = nn.ConvTranspose2d(6, 4, 2)
        drawn = w.Orthogonal()(layer.weight, site=Site.alone(layer.weight, layer))
        rows = drawn.movedim(1, 0).flatten(1)
        assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-5)

    def test_impossible_gates_are_named(self):
        with pytest.raises(ConfigurationError, match=r"has shape \(7, 3\): its rows are not 2 equal gates"):
            w.Orthogonal(gates=2)(torch.empty(7, 3))

    def test_a_vector_has_no_fans(self):
        with pytest.raises(ConfigurationError, match="two axes or more"):
            w.KaimingNormal()(torch.empty(3))

    def test_scale_and_constant_set_weights_directly(self):
        model = nn.Linear(3, 2)
        before = model.weight.detach().clone()
        trainer = Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.0),
            nn.MSELoss(),
            plugins=[w.Scale(3.0, where="weight"), w.Constant(0.25, where="bias")],
        )
        trainer.run([(torch.randn(4, 3), torch.randn(4, 2))])
        assert torch.equal(model.weight, before * 3)
        assert torch.equal(model.bias, torch.full((2,), 0.25))


class TestPenalties:
    def test_half_the_strength_is_sgds_weight_decay(self):
        torch.manual_seed(0)
        ours, theirs = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
        theirs.load_state_dict(ours.state_dict())
        optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, weight_decay=0.3, momentum=0.9)
        plain = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
        trainer = least_squares(ours, optimizer=plain, plugins=[w.L2(0.15)])
        slopes = [torch.randn(3, 4) for _ in range(20)]
        trainer.run(slopes)
        for slope in slopes:
            optimizer.zero_grad()
            (theirs.weight * slope).sum().backward()
            optimizer.step()
        assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)

    def test_decoupled_l2_is_adamw(self):
        torch.manual_seed(0)
        ours, theirs = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
        theirs.load_state_dict(ours.state_dict())
        optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.2)
        adam = torch.optim.Adam(ours.parameters(), lr=0.01)
        trainer = least_squares(ours, optimizer=adam, plugins=[w.L2(0.1, mode="decoupled")])
        slopes = [torch.randn(3, 4) for _ in range(50)]
        trainer.run(slopes)
        for slope in slopes:
            optimizer.zero_grad()
            (theirs.weight * slope).sum().backward()
            optimizer.step()
        assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)

    def test_proximal_l1_makes_exact_zeros(self):
        model = nn.Linear(4, 3, bias=False)
        start = model.weight.detach().clone()
        least_squares(model, lr=0.5, plugins=[w.L1(0.4, mode="proximal")]).run([torch.zeros(3, 4)])
        wanted = start.sign() * (start.abs() - 0.2).clamp(min=0)
        assert torch.equal(model.weight, wanted)
        assert (model.weight == 0).any()

    def test_the_cost_is_summed_over_the_weights(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), plugins=[w.L1(0.5)])
        (cost,) = trainer.penalty_costs().values()
        wanted = 0.5 * sum(layer.weight.detach().abs().sum() for layer in model)
        assert cost.item() == pytest.approx(wanted.item())

    @pytest.mark.parametrize("penalty", [w.L1, w.L2, w.GroupLasso])
    def test_a_negative_strength_is_refused(self, penalty):
        with pytest.raises(ConfigurationError, match="strength must be at least 0"):
            penalty(-1.0)


class TestGradientEditors:
    @pytest.mark.parametrize("limit", [0.5, 100.0])
    def test_clip_norm_is_torchs_clip_grad_norm(self, limit):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        gradients = [torch.randn_like(parameter) for parameter in model.parameters()]
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        sites = [Site.alone(gradient) for gradient in gradients]
        w.ClipNorm(limit).edit_all_(gradients, list(model.parameters()), sites)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            assert torch.allclose(gradient, parameter.grad, rtol=1e-5)

    def test_adaptive_clip_follows_the_paper_unit_by_unit(self):
        torch.manual_seed(0)
        weight, gradient = torch.randn(5, 4, 3, 3), torch.randn(5, 4, 3, 3)
        weight[0] = 0
        wanted = gradient.clone()
        for unit in range(5):
            allowed = 0.02 * max(weight[unit].norm().item(), 1e-3)
            norm = gradient[unit].norm().item()
            wanted[unit] *= min(1.0, allowed / norm)
        assert torch.allclose(w.AdaptiveClip(0.02)(gradient, weight), wanted, rtol=1e-4)

    def test_centralize_takes_out_the_mean_of_every_unit(self):
        edited = w.Centralize()(torch.randn(5, 4, 3, 3), torch.zeros(5, 4, 3, 3))
        assert torch.allclose(edited.mean(dim=(1, 2, 3)), torch.zeros(5), atol=1e-6)


class TestWeightEditors:
    def test_gradient_step_is_sgd(self):
        model = nn.Linear(4, 3, bias=False)
        start, slope = model.weight.detach().clone(), torch.randn(3, 4)
        least_squares(model, lr=0.0, plugins=[w.GradientStep(0.3)]).run([slope])
        assert torch.allclose(model.weight, start - 0.3 * slope)

    def test_decay_compounds(self):
        model = nn.Linear(4, 3, bias=False)
        start = model.weight.detach().clone()
        least_squares(model, lr=0.0, plugins=[w.Decay(0.1)]).run([torch.zeros(3, 4)] * 10)
        assert torch.allclose(model.weight, start * 0.9**10)

    def test_perturb_adds_normal_noise(self):
        noise = w.Perturb(0.2)(torch.zeros(60, 60)).flatten().numpy()
        assert scipy.stats.kstest(noise, "norm", args=(0, 0.2)).pvalue > 1e-3


class TestConstraints:
    @given(st.integers(0, 2**31), st.floats(0.05, 5.0))
    @settings(max_examples=50, deadline=None)
    def test_max_norm_is_torchs_renorm(self, seed, limit):
        weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(w.MaxNorm(limit)(weight), torch.renorm(weight, 2, 0, limit), rtol=1e-5, atol=1e-7)

    @given(st.integers(0, 2**31))
    @settings(max_examples=50, deadline=None)
    def test_unit_norm_is_torchs_normalize(self, seed):
        weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(w.UnitNorm()(weight), nn.functional.normalize(weight, dim=1), rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("scale", [1e-30, 1e-42, 1e30])
    def test_unit_norm_survives_tiny_and_huge_units(self, scale):
        projected = w.UnitNorm()(torch.tensor([[3.0, 4.0]]) * scale)
        assert projected.norm().item() == pytest.approx(1.0, abs=1e-5)

    def test_max_norm_bounds_a_transposed_convolutions_outputs(self):
        layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
        site = Site.alone(layer.weight, layer)
        grouped = layer.weight.detach().unflatten(0, (2, 2)) * 10
        projected = w.MaxNorm(0.5)(grouped, site=site)
        assert torch.linalg.vector_norm(projected, dim=(1, 3, 4)).max().item() == pytest.approx(0.5, abs=1e-6)

    @pytest.mark.parametrize("constraint", [w.MaxNorm(0.5), w.UnitNorm()], ids=str)
    def test_a_hundred_thousand_projections_do_not_drift(self, constraint):
        torch.manual_seed(0)
        weight = torch.randn(8, 7)
        first = constraint(weight)
        again = [first.clone()]
        sites = [Site.alone(weight)]
        for _ in range(100_000 // 50):
            constraint.project_all_(again, sites)
        assert (again[0] - first).abs().max().item() <= 1e-6

    @pytest.mark.parametrize("bounds", [{}, {"low": 1.0, "high": 0.0}])
    def test_bounds_that_make_no_set_are_refused(self, bounds):
        with pytest.raises(ConfigurationError, match="low"):
            w.Clamp(**bounds)


class TestAverages:
    def test_ema_equals_its_closed_form(self):
        model = nn.Linear(1, 1, bias=False)
        seen = []
        trainer = least_squares(model, lr=0.1, plugins=[w.EMA(0.8)])
        trainer.add_event_handler("update_completed".upper(), lambda: seen.append(model.weight.item()))
        trainer.run([torch.ones(1, 1)] * 6)
        weights = np.array(seen)
        powers = 0.2 * 0.8 ** np.arange(5, -1, -1)
        powers[0] = 0.8**5  # the mean starts at the first weight
        with trainer.averaged():
            assert model.weight.item() == pytest.approx(float(powers @ weights), rel=1e-5)
        assert model.weight.item() == seen[-1]

    def test_an_average_of_bfloat16_weights_does_not_stall(self):
        model = nn.Linear(4, 4, bias=False).bfloat16()
        trainer = least_squares(model, lr=0.0, plugins=[w.EMA(0.999)])
        trainer.run([torch.zeros(4, 4, dtype=torch.bfloat16)])
        state = trainer.state_dict()["weightsmith"]["plugins"]["weightsmith_plugins.EMA"]["memory"]["weight"]["mean"]
        assert state.dtype == torch.float32


class TestDrawnWeights:
    """Distributions against SciPy, and torch.nn.init with the same generator where it defines the same thing."""

    LAYERS = (nn.Linear(40, 60), nn.Conv2d(6, 10, 5))

    @pytest.mark.parametrize("layer", LAYERS, ids=str)
    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (w.XavierUniform(1.3), lambda t, g: nn.init.xavier_uniform_(t, 1.3, g)),
            (w.XavierNormal(1.3), lambda t, g: nn.init.xavier_normal_(t, 1.3, g)),
            (
                w.KaimingUniform("fan_out", "leaky_relu", 0.2),
                lambda t, g: nn.init.kaiming_uniform_(t, 0.2, "fan_out", generator=g),
            ),
            (w.KaimingNormal("fan_in", "relu"), lambda t, g: nn.init.kaiming_normal_(t, 0, "fan_in", "relu", g)),
            (w.Uniform(-0.1, 0.4), lambda t, g: nn.init.uniform_(t, -0.1, 0.4, g)),
            (w.Normal(0.1, 0.4), lambda t, g: nn.init.normal_(t, 0.1, 0.4, g)),
            (w.TruncatedNormal(0.1, 0.4, -0.2, 0.5), lambda t, g: nn.init.trunc_normal_(t, 0.1, 0.4, -0.2, 0.5, g)),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_torch_draws(self, ours, theirs, layer):
        wanted = theirs(torch.empty(layer.weight.shape), Site.alone(layer.weight, seed=4).generator)
        found = ours(layer.weight, site=Site.alone(layer.weight, layer, seed=4))
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
    @pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
    def test_variance_scaling_has_the_variance_that_it_says(self, mode, distribution):
        layer = nn.Conv2d(30, 40, 5)
        drawn = w.VarianceScaling(3.0, mode, distribution)(layer.weight, site=Site.alone(layer.weight, layer))
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        assert drawn.double().var().item() == pytest.approx(3.0 / fan, rel=0.03)
        std = math.sqrt(3.0 / fan)
        oracle = {
            "normal": scipy.stats.norm(0, std),
            "uniform": scipy.stats.uniform(-math.sqrt(3) * std, 2 * math.sqrt(3) * std),
            "truncated_normal": scipy.stats.truncnorm(-2, 2, 0, std / scipy.stats.truncnorm.std(-2, 2)),
        }[distribution]
        assert scipy.stats.kstest(drawn.flatten().numpy(), oracle.cdf).pvalue > 1e-3

    def test_lecuns_are_cases_of_variance_scaling(self):
        weight = torch.empty(20, 30)
        normal = w.VarianceScaling(1.0, "fan_in", "truncated_normal")(weight, site=Site.alone(weight, seed=1))
        assert torch.equal(w.LecunNormal()(weight, site=Site.alone(weight, seed=1)), normal)
        uniform = w.VarianceScaling(1.0, "fan_in", "uniform")(weight, site=Site.alone(weight, seed=1))
        assert torch.equal(w.LecunUniform()(weight, site=Site.alone(weight, seed=1)), uniform)

    @pytest.mark.parametrize("shape", [(4, 3, 3, 3), (5, 5, 7), (6, 2, 3, 3, 3)])
    def test_a_delta_orthogonal_convolution_keeps_norms(self, shape):
        weight = w.DeltaOrthogonal()(torch.empty(shape)).double()
        dimensions = len(shape) - 2
        convolve = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[dimensions - 1]
        signal = torch.randn(2, shape[1], *[6] * dimensions, dtype=torch.float64)
        found = convolve(signal, weight, padding=shape[2] // 2)
        assert torch.allclose(found.norm(dim=1), signal.norm(dim=1), atol=1e-5)

    @pytest.mark.parametrize("shape", [(3, 4, 3, 3), (4, 3, 2, 2), (4, 3)])
    def test_a_delta_orthogonal_of_another_shape_is_refused(self, shape):
        with pytest.raises(ConfigurationError, match="odd kernel sizes"):
            w.DeltaOrthogonal()(torch.empty(shape))

    @pytest.mark.parametrize("groups", [1, 2])
    def test_dirac_is_torchs_and_hands_the_channels_on(self, groups):
        weight = torch.empty(4, 4 // groups, 3, 3)
        found = w.Dirac(groups)(weight)
        assert torch.equal(found, nn.init.dirac_(torch.empty_like(weight), groups))
        signal = torch.randn(1, 4, 5, 5)
        assert torch.equal(nn.functional.conv2d(signal, found, padding=1, groups=groups), signal)

    def test_identity_hands_its_inputs_on(self):
        signal = torch.randn(3, 5)
        assert torch.equal(signal @ w.Identity()(torch.empty(5, 5)).T, signal)

    @pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 1.0])
    def test_sparse_columns_have_as_many_zeros_as_torchs(self, sparsity):
        found = w.Sparse(sparsity, 0.5)(torch.empty(7, 50))
        wanted = nn.init.sparse_(torch.empty(7, 50), sparsity, 0.5)
        assert torch.equal((found == 0).sum(dim=0), (wanted == 0).sum(dim=0))

    def test_values_come_from_lists_and_files(self, tmp_path):
        wanted = torch.randn(3, 2)
        np.save(tmp_path / "values.npy", wanted.numpy())
        torch.save(wanted, tmp_path / "values.pt")
        for values in (wanted.tolist(), tmp_path / "values.npy", tmp_path / "values.pt"):
            assert torch.allclose(w.Values(values)(torch.empty(3, 2)), wanted)

    @pytest.mark.parametrize("content", [{"not": "a tensor"}, None])
    def test_a_file_that_does_not_fit_is_named(self, tmp_path, content):
        path = tmp_path / "values.pt"
        if content is not None:
            torch.save(content, path)
        with pytest.raises(ConfigurationError, match=r"values\.pt"):
            w.Values(str(path))(torch.empty(2, 2))

    def test_values_of_another_shape_are_refused(self):
        with pytest.raises(ConfigurationError, match=r"has shape \(2, 2\): the values have \(1, 2\)"):
            w.Values([[1.0, 2.0]])(torch.empty(2, 2))

    def test_an_initializer_acts_on_the_effective_weight_where_torchs_do_nothing(self):
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
        nn.init.constant_(layer.weight, 7.0)  # sets a tensor that is computed anew at once
        assert not torch.equal(layer.weight, torch.full((4, 3), 7.0))
        trainer = Trainer(layer, torch.optim.SGD(layer.parameters(), lr=0.0), nn.MSELoss(), plugins=[w.Constant(7.0)])
        trainer.run([(torch.randn(2, 3), torch.randn(2, 4))])
        assert torch.allclose(layer.weight, torch.full((4, 3), 7.0))
