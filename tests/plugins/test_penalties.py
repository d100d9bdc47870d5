"""Penalties against SciPy, NumPy and closed forms; the elementary ones are in test_mathematics.py."""

import copy

import numpy as np
import pytest
import scipy.optimize
import torch
import weightsmith_plugins as w
from torch import nn
from weightsmith import ConfigurationError, Site, Trainer
from weightsmith.files import write_tensors
from weightsmith_plugins.penalties import fisher_information


def trainer_along(model, slope, plugin, lr=0.1, **options):
    def step(trainer, _):
        return trainer.update(lambda: (model.weight * slope).sum())

    optimizer = options.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, optimizer, step=step, plugins=[plugin], **options)


def test_elastic_net_is_the_sum_of_l1_and_l2():
    weight = torch.randn(4, 5)
    site = Site.alone(weight)
    both = w.ElasticNet(0.2, 0.3)
    assert torch.allclose(both(weight), w.L1(0.2)(weight) + w.L2(0.3)(weight))
    assert torch.allclose(both.gradient(weight, site), 0.2 * weight.sign() + 0.6 * weight)


@pytest.mark.parametrize(
    "plugin",
    [
        w.ElasticNet(0.4, 0.3),
        w.NuclearNorm(0.4),
    ],
    ids=repr,
)
def test_the_proximal_map_is_what_scipy_finds(plugin):
    torch.manual_seed(1)
    weight = torch.randn(2, 2, dtype=torch.float64)
    site = Site.alone(weight)

    def objective(v):
        v = torch.from_numpy(v).reshape(2, 2)
        return (0.7 * plugin.cost(v, site) + (v - weight).square().sum() / 2).item()

    found = scipy.optimize.minimize(
        objective,
        weight.numpy().ravel(),
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 9000},
    )
    assert np.allclose(found.x, plugin.proximal(weight, 0.7, site).numpy().ravel(), atol=1e-4)


def test_nuclear_norm_is_numpys_and_lowers_the_rank():
    weight = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    assert w.NuclearNorm(0.5)(weight).item() == pytest.approx(
        0.5 * np.linalg.norm(weight.flatten(1).numpy(), "nuc"), rel=1e-12
    )
    values = torch.linalg.svdvals(weight.flatten(1))
    shrunk = w.NuclearNorm(1.0).proximal(weight, values[2].item(), Site.alone(weight)).flatten(1)
    assert torch.linalg.matrix_rank(shrunk, atol=1e-10) == 2


def test_nuclear_norms_gradient_leaves_out_the_null_space():
    low = torch.outer(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0, 0.0]))
    gradient = w.NuclearNorm(1.0).gradient(low, Site.alone(low))
    assert torch.allclose(gradient, torch.tensor([[0.6, 0.0, 0.0], [0.8, 0.0, 0.0]]), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3)])
def test_orthogonality_is_zero_for_what_torch_draws_orthogonal(shape):
    weight = nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64))
    assert w.Orthogonality(1.0)(weight).item() == pytest.approx(0.0, abs=1e-20)
    gram = (2 * weight) @ (2 * weight).T if shape[0] < shape[1] else (2 * weight).T @ (2 * weight)
    assert w.Orthogonality(0.5)(2 * weight).item() == pytest.approx(
        0.5 * np.linalg.norm(gram.numpy() - np.eye(3), "fro") ** 2
    )


def test_each_gate_of_a_recurrent_layer_is_a_matrix():
    layer = nn.LSTM(4, 5)
    weight = layer.weight_hh_l0.detach()
    site = Site.alone(weight, layer)
    norms = [torch.linalg.matrix_norm(gate, "nuc") for gate in weight.chunk(4)]
    assert torch.allclose(w.NuclearNorm(1.0)(weight, site=site), torch.stack(norms).sum())
    tops = torch.stack([torch.linalg.matrix_norm(gate, 2) for gate in weight.chunk(4)])
    assert torch.allclose(w.SpectralPenalty(1.0)(weight, site=site), tops.square().sum())


def test_a_transposed_convolutions_units_are_its_outputs():
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    weight = layer.weight.detach()
    seen = weight.unflatten(0, (2, 2))  # groups, inputs, outputs, kernel
    rows = seen.permute(0, 2, 1, 3, 4).reshape(6, -1)
    assert torch.allclose(
        w.NuclearNorm(1.0)(seen, site=Site.alone(weight, layer)), torch.linalg.matrix_norm(rows, "nuc")
    )


def test_the_spectral_penalty_follows_the_largest_singular_value():
    torch.manual_seed(0)
    model = nn.Linear(8, 6, bias=False)
    plugin = w.SpectralPenalty(0.05)
    slope = torch.outer(torch.randn(6), torch.randn(8))
    trainer = trainer_along(model, 0.05 * slope, plugin)
    trainer.run(range(200))
    exact = torch.linalg.matrix_norm(model.weight.detach(), 2)
    assert trainer.penalty_costs()[plugin].item() == pytest.approx(0.05 * exact.square().item(), rel=1e-3)


def test_hoyer_is_one_for_one_weight_and_the_root_of_n_for_equal_ones():
    assert w.Hoyer(1.0)(torch.tensor([[0.0, -5.0], [0.0, 0.0]])).item() == pytest.approx(1.0)
    assert w.Hoyer(1.0)(torch.full((4, 4), -0.3)).item() == pytest.approx(4.0)
    assert w.Hoyer(1.0, squared=True)(torch.full((4, 4), -0.3)).item() == pytest.approx(16.0)
    weight = torch.randn(3, 4)
    assert w.Hoyer(1.0)(100 * weight).item() == pytest.approx(w.Hoyer(1.0)(weight).item(), rel=1e-5)


class TestL2SP:
    @pytest.mark.parametrize("after", [0, 3])
    def test_it_is_anchored_where_the_run_began(self, after):
        model, slope = nn.Linear(3, 2, bias=False), torch.ones(2, 3)
        plugin = w.L2SP(0.5, after=after)
        trainer = trainer_along(model, slope, plugin, lr=0.1)
        trainer.attach(w.Constant(0.25))
        trainer.run(range(200))
        # The slope 1 and the pull 2 · 0.5 · (w − 0.25) are in balance at w = 0.25 − 1.
        assert torch.allclose(model.weight, torch.full((2, 3), -0.75), atol=1e-4)

    def test_attached_in_mid_run_it_is_anchored_there(self):
        model = nn.Linear(3, 2, bias=False)
        trainer = trainer_along(model, torch.ones(2, 3), w.L1(0.0), lr=0.1)
        trainer.run(range(5))
        here = model.weight.detach().clone()
        trainer.attach(w.L2SP(0.5))
        trainer.run(range(5), max_epochs=60)
        assert torch.allclose(model.weight, here - 1, atol=1e-4)

    def test_asking_for_the_cost_before_the_run_anchors_nothing(self):
        model = nn.Linear(3, 2, bias=False)
        plugin = w.L2SP(0.5)
        trainer = trainer_along(model, torch.ones(2, 3), plugin)
        trainer.attach(w.Constant(0.25))
        assert trainer.penalty_costs()[plugin] == 0
        trainer.run(range(200))
        assert torch.allclose(model.weight, torch.full((2, 3), -0.75), atol=1e-4)


class TestElasticConsolidation:
    def test_the_fisher_information_of_logistic_regression_is_its_closed_form(self):
        torch.manual_seed(0)
        model = nn.Linear(3, 1).double()
        inputs, targets = torch.randn(50, 3, dtype=torch.float64), torch.randint(0, 2, (50, 1)).double()
        found = fisher_information(model, [(inputs, targets)], nn.BCEWithLogitsLoss())
        residuals = torch.sigmoid(model(inputs)).detach() - targets
        assert torch.allclose(found["weight"], (residuals * inputs).square().mean(0, keepdim=True))
        assert torch.allclose(found["bias"], residuals.square().mean(0))

    def test_weights_end_where_the_quadratic_says(self, tmp_path):
        model = nn.Linear(3, 2, bias=False)
        fisher = torch.tensor([[1.0, 2.0, 4.0], [0.5, 1.0, 0.0]])
        write_tensors(tmp_path / "fisher.safetensors", {"weight": fisher})
        start = model.weight.detach().clone()
        slope = torch.ones(2, 3)
        trainer = trainer_along(model, slope, w.ElasticConsolidation(2.0, tmp_path / "fisher.safetensors"), lr=0.05)
        trainer.run(range(500))
        held = fisher > 0
        assert torch.allclose(model.weight[held], (start - slope / (2 * fisher))[held], atol=1e-4)
        assert torch.allclose(model.weight[~held], (start - 500 * 0.05)[~held], atol=1e-3)

    def test_it_keeps_an_earlier_task_better_than_nothing_does(self, tmp_path):
        torch.manual_seed(0)
        old = [(torch.randn(64, 4) * torch.tensor([1.0, 1.0, 0.0, 0.0]), None)]
        old = [(x, (x[:, 0] > x[:, 1]).long()) for x, _ in old]
        new = [(x, (x[:, 2] > x[:, 3]).long()) for x in [torch.randn(64, 4)]]
        loss_fn = nn.CrossEntropyLoss()
        model = nn.Linear(4, 2)
        Trainer(model, torch.optim.Adam(model.parameters(), lr=0.05), loss_fn).run(old, max_epochs=200)
        path = tmp_path / "fisher.safetensors"
        write_tensors(path, fisher_information(model, old, loss_fn))
        losses = []
        for plugins in ([], [w.ElasticConsolidation(100.0, path)]):
            twin = copy.deepcopy(model)
            optimizer = torch.optim.Adam(twin.parameters(), lr=0.05)
            Trainer(twin, optimizer, loss_fn, plugins=plugins).run(new, max_epochs=200)
            losses.append(loss_fn(twin(old[0][0]), old[0][1]).item())
        assert losses[1] < losses[0] / 2

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"other": torch.ones(2, 3)}, "has nothing for weight 'weight'"),
            ({"weight": torch.ones(3, 2)}, r"holds shape \(3, 2\)"),
            ({"weight": -torch.ones(2, 3)}, "negative or not finite"),
        ],
    )
    def test_a_file_that_does_not_fit_is_named_before_the_first_batch(self, tmp_path, tensors, message):
        write_tensors(tmp_path / "fisher.safetensors", tensors)
        model = nn.Linear(3, 2, bias=False)
        before = model.weight.detach().clone()
        trainer = trainer_along(model, torch.ones(2, 3), w.ElasticConsolidation(1.0, tmp_path / "fisher.safetensors"))
        with pytest.raises(ConfigurationError, match=message):
            trainer.run(range(3))
        assert torch.equal(model.weight, before)

    def test_one_that_does_not_fit_in_mid_run_leaves_nothing_behind(self, tmp_path):
        write_tensors(tmp_path / "fisher.safetensors", {"other": torch.ones(2, 3)})
        model = nn.Linear(3, 2, bias=False)
        trainer = trainer_along(model, torch.ones(2, 3), w.L1(0.0))
        trainer.run(range(2))
        with pytest.raises(ConfigurationError, match="has nothing for weight"):
            trainer.attach(w.ElasticConsolidation(1.0, tmp_path / "fisher.safetensors"))
        assert trainer.plugins == (w.L1(0.0),)
        trainer.run(range(2), max_epochs=2)

    def test_a_parametrized_weight_is_refused_by_name(self):
        model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
        with pytest.raises(ConfigurationError, match="'weight' is parametrized"):
            fisher_information(model, [(torch.randn(2, 3), torch.randn(2, 2))], nn.MSELoss())

    def test_half_precision_sums_do_not_stall(self):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        data = [(torch.randn(600, 3), torch.randint(0, 2, (600,)))]
        wanted = fisher_information(model, data, nn.CrossEntropyLoss())["weight"]
        half = [(data[0][0].bfloat16(), data[0][1])]
        found = fisher_information(model.bfloat16(), half, nn.CrossEntropyLoss())["weight"]
        assert torch.allclose(found, wanted, rtol=0.03)


def test_an_lstms_projection_has_no_gates():
    layer = nn.LSTM(8, 8, proj_size=4)
    weight = layer.weight_hr_l0.detach()
    found = w.NuclearNorm(1.0)(weight, site=Site.alone(weight, layer, name="weight_hr_l0"))
    assert torch.allclose(found, torch.linalg.matrix_norm(weight, "nuc"))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_hoyer_keeps_its_value_at_every_scale(squared, scale):
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    plugin = w.Hoyer(1.0, squared=squared)
    torch.testing.assert_close(plugin(weight * scale), plugin(weight))
    site = Site.alone(weight)
    torch.testing.assert_close(plugin.gradient(weight * scale, site) * scale, plugin.gradient(weight, site))


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
@pytest.mark.parametrize(
    ("plugin", "cost"),
    [
        (w.L1(0.05), lambda x: 0.05 * x.abs().sum()),
        (w.L2(0.05), lambda x: 0.05 * x.square().sum()),
        (w.ElasticNet(0.02, 0.03), lambda x: 0.02 * x.abs().sum() + 0.03 * x.square().sum()),
    ],
    ids=["L1", "L2", "ElasticNet"],
)
def test_lbfgs_finds_the_minimum_that_it_finds_with_the_penalty_in_the_loss(plugin, cost, line_search):
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    targets = inputs @ torch.tensor([[1.5, -2.0, 0.7, 3.0, -0.4, 0.9]], dtype=torch.float64).T

    def least(plugins, extra):
        model = nn.Linear(6, 1, dtype=torch.float64)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=20, line_search_fn=line_search)

        def step(trainer, batch):
            return trainer.update(lambda: nn.functional.mse_loss(model(inputs), targets) + extra(model.weight))

        Trainer(model, optimizer, step=step, plugins=plugins).run([0] * 30, max_epochs=1)
        return model.weight.detach()

    ours, theirs = least([plugin], lambda _: 0.0), least([], cost)
    assert (ours - theirs).abs().max() <= 1e-4
    weight = torch.cat([inputs, torch.ones(40, 1, dtype=torch.float64)], 1).numpy()

    def objective(x):
        residual = weight @ x - targets.numpy()[:, 0]
        return (residual**2).mean() + float(cost(torch.as_tensor(x[:6])))

    nearest = scipy.optimize.minimize(objective, np.append(ours.numpy()[0], 0.0), method="Nelder-Mead", tol=1e-12)
    assert np.abs(nearest.x[:6] - ours.numpy()[0]).max() <= 1e-4, "SciPy finds a lower point elsewhere"
