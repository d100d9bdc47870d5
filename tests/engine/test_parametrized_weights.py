"""Weights that a layer computes from raw parameters: what initializers, penalties and probes do with them."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from weightsmith import Penalty, Trainer, UnsupportedWeightError
from weightsmith_plugins import (
    L1,
    L2,
    Constant,
    GroupLasso,
    KaimingNormal,
    MaxNorm,
    Orthogonal,
    WeightHistograms,
)


class Exponential(nn.Module):
    def forward(self, raw):
        return raw.exp()

    def right_inverse(self, weight):
        return weight.log()


class OneWay(nn.Module):
    def forward(self, raw):
        return raw.tanh()


class Cube(Penalty):
    """Σ|w|³, its gradient left to autograd."""

    def cost(self, weight, site):
        return weight.abs().pow(3).sum()


def half_square(model):
    """A loss whose gradient at every trained parameter is that parameter."""
    return sum(p.abs().square().sum() / 2 for p in model.parameters() if p.requires_grad and p.numel())


def make_trainer(model, *plugins, loss=half_square, lr=0.0, optimizer=None, **settings):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, optimizer, step=lambda t, _: t.update(loss(model)), plugins=plugins, seed=0, **settings)


def started(model, *plugins):
    make_trainer(model, *plugins).run([0], max_epochs=1)
    return model


@pytest.mark.parametrize("parametrized", [weight_norm, Exponential], ids=["weight_norm", "exponential"])
def test_initializers_set_what_the_layer_computes_with(parametrized):
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.abs_()
    if parametrized is weight_norm:
        weight_norm(layer)
    else:
        parametrize.register_parametrization(layer, "weight", Exponential())
    before = {id(p) for p in layer.parameters()}
    started(layer, Constant(0.5))
    torch.testing.assert_close(layer.weight, torch.full((2, 3), 0.5))
    assert {id(p) for p in layer.parameters()} == before, "the optimizer goes on with the same parameters"


def test_an_orthogonal_start_survives_spectral_normalisation():
    torch.manual_seed(0)
    weight = started(spectral_norm(nn.Linear(4, 3)), Orthogonal()).weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(3), atol=1e-5, rtol=0)


def test_initializing_a_parametrization_without_right_inverse_is_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 2))
    parametrize.register_parametrization(model[0], "weight", OneWay())
    with pytest.raises(UnsupportedWeightError, match=r"0\.weight.*right_inverse"):
        make_trainer(model, Constant(0.5))


@pytest.mark.parametrize("penalty", [L1(0.3), L2(0.3), GroupLasso(0.3), Cube()], ids=repr)
@pytest.mark.parametrize("kind", ["weight_norm", "exponential", "tanh"])
def test_a_penaltys_gradient_goes_through_the_parametrization(penalty, kind):
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    with torch.no_grad():
        layer.weight.abs_()
    if kind == "weight_norm":
        weight_norm(layer)
    else:
        parametrize.register_parametrization(layer, "weight", Exponential() if kind == "exponential" else OneWay())
    costs = {
        L1: lambda w: 0.3 * w.abs().sum(),
        L2: lambda w: 0.3 * w.square().sum(),
        GroupLasso: lambda w: 0.3 * 3**0.5 * w.norm(dim=1).sum(),
        Cube: lambda w: w.abs().pow(3).sum(),
    }
    parameters = dict(layer.named_parameters())
    written_out = torch.autograd.grad(half_square(layer) + costs[type(penalty)](layer.weight), parameters.values())
    started(layer, penalty)
    for (name, parameter), expected in zip(parameters.items(), written_out, strict=True):
        torch.testing.assert_close(parameter.grad, expected, msg=lambda m, n=name: f"{n}: {m}")


def test_a_penaltys_gradient_goes_through_spectral_normalisation():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.1, 0.2], [0.1, 0.2, 0.1]]))  # the power iteration converges at once
    spectral_norm(layer)
    parameters = dict(layer.named_parameters())
    written_out = torch.autograd.grad(half_square(layer) + 0.3 * layer.weight.square().sum(), parameters.values())
    started(layer, L2(0.3))
    for parameter, expected in zip(parameters.values(), written_out, strict=True):
        torch.testing.assert_close(parameter.grad, expected, atol=1e-9, rtol=1e-9)


def test_measuring_a_spectrally_normalised_weight_does_not_change_the_run():
    def ended(*plugins):
        torch.manual_seed(0)
        layer = spectral_norm(nn.Linear(6, 5))
        inputs = torch.randn(4, 6)
        make_trainer(layer, *plugins, loss=lambda m: m(inputs).square().sum(), lr=0.1).run([0], max_epochs=3)
        return layer.state_dict()

    plain, measured = ended(), ended(WeightHistograms())
    assert [name for name, value in plain.items() if not torch.equal(value, measured[name])] == []


def test_units_of_a_parametrized_grouped_transposed_convolution():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False).double()
    parametrize.register_parametrization(layer, "weight", OneWay())
    norms = layer.weight.reshape(2, 2, 3, 2, 2).square().sum((1, 3, 4)).sqrt()
    raw = layer.parametrizations.weight.original
    (expected,) = torch.autograd.grad(half_square(layer) + 0.3 * 8**0.5 * norms.sum(), raw)
    started(layer, GroupLasso(0.3))
    torch.testing.assert_close(raw.grad, expected)


def test_initializing_a_parametrized_grouped_transposed_convolution():
    layer, plain = (nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False) for _ in range(2))
    weight_norm(layer)
    started(layer, KaimingNormal())
    torch.testing.assert_close(layer.weight, started(plain, KaimingNormal()).weight)


@pytest.mark.parametrize("plugin", [MaxNorm(1.0), L2(0.1, mode="decoupled"), L2(0.1, mode="proximal")], ids=repr)
def test_edits_of_the_raw_parameter_that_would_miss_the_effective_one_are_refused(plugin):
    model = nn.Sequential(weight_norm(nn.Linear(3, 2)))
    with pytest.raises(UnsupportedWeightError, match=r"0\.weight.*parametrized.*mode="):
        make_trainer(model, plugin)
