"""Tied, frozen, lazy, strided, empty, coarse, complex and sparse weights; and optimizers that do not fit."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from weightsmith import ConfigurationError, ConflictError, GradientEditor, Trainer, UnsupportedWeightError
from weightsmith_plugins import (
    EMA,
    L2,
    Centralize,
    ClipNorm,
    Constant,
    Decay,
    GroupLasso,
    KaimingNormal,
    MaxNorm,
    UnitNorm,
    WeightHistograms,
)


class Holder(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)


def half_square(model):
    """A loss whose gradient at every trained parameter is that parameter."""
    return sum(p.abs().square().sum() / 2 for p in model.parameters() if p.requires_grad and p.numel())


def make_trainer(model, *plugins, loss=half_square, lr=0.0, optimizer=None, **settings):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, optimizer, step=lambda t, _: t.update(loss(model)), plugins=plugins, seed=0, **settings)


def started(model, *plugins):
    make_trainer(model, *plugins).run([0], max_epochs=1)
    return model


def test_tied_weights_are_acted_on_once():
    model = nn.ModuleDict({"encoder": nn.Linear(3, 3, bias=False), "decoder": nn.Linear(3, 3, bias=False)})
    model["decoder"].weight = model["encoder"].weight
    before = model["encoder"].weight.detach().clone()
    trainer = make_trainer(model, L2(0.5, where="decoder"), Decay(0.5, where=["encoder", "decoder"]))
    assert [row.weights for row in trainer.plan().rows] == [("encoder.weight",), ("encoder.weight",)]
    trainer.run([0], max_epochs=1)
    assert torch.equal(model["encoder"].weight.grad, 2 * before)  # the loss's w and the penalty's 2 · 0.5 · w
    assert torch.equal(model["encoder"].weight, 0.5 * before)


def test_frozen_weights_are_left_alone_but_initialised_and_constrained():
    model = nn.ModuleDict({"cold": nn.Linear(3, 2, bias=False), "warm": nn.Linear(3, 2, bias=False)})
    model["cold"].weight.requires_grad_(False)
    before = model["cold"].weight.detach().clone()
    started(model, L2(0.1), ClipNorm(0.1), Decay(0.5), L2(0.1, mode="decoupled"), L2(0.1, mode="proximal"))
    assert torch.equal(model["cold"].weight, before)
    assert model["cold"].weight.grad is None
    started(model, Constant(2.0), UnitNorm())
    torch.testing.assert_close(model["cold"].weight, torch.full((2, 3), 3**-0.5))


# ---------------------------------------------------------------- strides, shapes and dtypes


@pytest.mark.parametrize("layout", ["transposed", "strided", "channels_last"])
def test_edits_reach_weights_whatever_their_memory_layout(layout):
    torch.manual_seed(0)
    if layout == "channels_last":
        model = nn.Conv2d(3, 4, 2, bias=False).to(memory_format=torch.channels_last)
    else:
        model = Holder(torch.randn(3, 4).t() if layout == "transposed" else torch.randn(4, 6)[:, ::2])
    weight, strides = model.weight, model.weight.stride()
    dims = tuple(range(1, weight.ndim))
    value = weight.detach().clone()
    gradient = value + 2 * 0.1 * value
    gradient = gradient - gradient.mean(dims, keepdim=True)
    value = 0.9 * (value - 0.5 * gradient)
    value = value / value.square().sum(dims, keepdim=True).sqrt()
    make_trainer(model, L2(0.1), Centralize(), Decay(0.1), lr=0.5).run([0], max_epochs=1)
    make_trainer(model, UnitNorm()).run([0], max_epochs=1)
    torch.testing.assert_close(weight.detach(), value)
    assert model.weight is weight
    assert weight.stride() == strides


def test_weights_without_elements_are_no_trouble():
    model = nn.ModuleDict({"empty": Holder(torch.empty(0, 3)), "hollow": Holder(torch.empty(3, 0))})
    model["full"] = Holder(torch.ones(1, 4))
    plugins = [KaimingNormal(), L2(0.1), GroupLasso(0.1), ClipNorm(1.0), Centralize(), Decay(0.5), UnitNorm(), EMA()]
    trainer = make_trainer(model, *plugins, WeightHistograms())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.run([0], max_epochs=2)
    assert model["full"].weight.norm().item() == pytest.approx(1.0)
    assert max(trainer.violations().values()) < 1e-6


def test_bfloat16_weights_are_projected_averaged_and_penalised():
    torch.manual_seed(0)
    model = Holder(torch.randn(64, 33, dtype=torch.bfloat16))
    started(model, UnitNorm())
    once = model.weight.detach().clone()
    torch.testing.assert_close(once.float().norm(dim=1), torch.ones(64), atol=4e-3, rtol=0)
    started(model, UnitNorm())
    assert torch.equal(model.weight, once), "projecting again must not drift"
    trainer, ema = make_trainer(model, L2(0.25), lr=1.0), EMA(0.5, where="weight")
    trainer.attach(ema)
    trainer.run([0, 0], max_epochs=1)
    assert model.weight.dtype == torch.bfloat16
    with trainer.averaged(ema):
        assert not torch.equal(model.weight, once)


def test_complex_weights_are_refused_by_name_except_where_defined():
    model = nn.ModuleDict({"wave": Holder(torch.randn(2, 2, dtype=torch.complex64))})
    for plugin in (L2(0.1), MaxNorm(1.0), Constant(0.0), Centralize(), Decay(0.1)):
        with pytest.raises(UnsupportedWeightError, match=r"wave\.weight.*complex.*where"):
            make_trainer(model, plugin)
    ema = EMA(0.75)
    trainer = make_trainer(model, ema, WeightHistograms(), lr=0.5)
    start = model["wave"].weight.detach().clone()
    trainer.run([0, 0], max_epochs=1)
    with trainer.averaged(ema):  # the mean starts at start/2, and moves a quarter of the way to start/4
        torch.testing.assert_close(model["wave"].weight.detach(), start * (0.75 / 2 + 0.25 / 4))


def test_lazy_weights_are_refused_by_name_before_the_first_step():
    for plugin in (L2(0.1), ClipNorm(1.0), Constant(0.0), WeightHistograms()):
        model = nn.ModuleDict({"early": nn.Linear(2, 2), "late": nn.LazyLinear(3)})
        with pytest.raises(UnsupportedWeightError, match=r"late\.weight.*one batch"):
            Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), step=lambda t, b: None, plugins=[plugin])


def test_sparse_gradients_are_refused_by_name_and_the_weight_itself_can_be_shaped():
    words = nn.Embedding(4, 3, sparse=True)
    model = nn.ModuleDict({"words": words})
    for plugin in (L2(0.1), ClipNorm(1.0), Decay(0.1)):
        with pytest.raises(UnsupportedWeightError, match=r"words\.weight.*sparse=False"):
            make_trainer(model, plugin)
    lookup = torch.tensor([1, 2])
    trainer = make_trainer(model, Constant(1.0), UnitNorm(), loss=lambda m: words(lookup).sum(), lr=0.1)
    trainer.run([0], max_epochs=1)
    torch.testing.assert_close(words.weight, torch.full((4, 3), 3**-0.5))


def test_sparse_gradients_that_no_module_announces_are_refused_by_name():
    model, lookup = Holder(torch.randn(4, 3)), torch.tensor([1, 2])

    def loss(m):
        return nn.functional.embedding(lookup, m.weight, sparse=True).sum()

    with pytest.raises(UnsupportedWeightError) as caught:
        make_trainer(model, ClipNorm(1.0), loss=loss).run([0], max_epochs=1)
    assert "weight" in str(caught.value)


def test_a_sparse_gradient_is_refused_beside_a_weight_that_has_none():
    model, lookup = nn.ModuleList([Holder(torch.randn(4, 3)), Holder(torch.randn(4, 3))]), torch.tensor([1, 2])

    def loss(m):
        return nn.functional.embedding(lookup, m[1].weight, sparse=True).sum()

    for plugin in (ClipNorm(1.0), L2(0.1)):
        with pytest.raises(UnsupportedWeightError, match=r"1\.weight.*sparse"):
            make_trainer(model, plugin, loss=loss).run([0], max_epochs=1)


@pytest.mark.parametrize("is_alone", [False, True])
def test_gradients_of_grouped_transposed_convolutions_are_seen_as_their_weights(is_alone):
    seen = {}

    class Looks(GradientEditor):
        def edit(self, gradient, weight, site):
            seen[site.name] = tuple(gradient.shape), tuple(weight.shape)
            return gradient

    model = nn.ModuleList([nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), Holder(torch.randn(4, 3))])
    make_trainer(model, Looks(), loss=lambda m: half_square(m[:1] if is_alone else m)).run([0], max_epochs=1)
    others = {} if is_alone else {"1.weight": ((4, 3), (4, 3))}
    assert seen == {"0.weight": ((2, 2, 3, 3, 3), (2, 2, 3, 3, 3)), **others}


# ---------------------------------------------------------------- optimizers that do not fit


def test_a_weight_in_two_optimizers_is_refused_by_name():
    model = nn.Sequential(nn.Linear(2, 2))
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.1) for name in ("one", "two")}
    with pytest.raises(ConflictError, match=r"'one'.*'two'.*0\.weight"):
        Trainer(model, optimizers, step=lambda t, b: None)


def test_a_weight_in_no_optimizer_is_constrained_at_the_start_and_reported(caplog):
    model = nn.ModuleDict({"held": nn.Linear(2, 2, bias=False), "loose": nn.Linear(2, 2, bias=False)})
    optimizer = torch.optim.SGD(model["held"].parameters(), lr=0.1)
    trainer = make_trainer(model, UnitNorm(), optimizer=optimizer)
    assert "loose.weight" in caplog.text
    assert "loose.weight" in trainer.plan().rows[0].note
    trainer.run([0], max_epochs=1)
    torch.testing.assert_close(model["loose"].weight.norm(dim=1), torch.ones(2))
    for plugin in (L2(0.1, where="loose"), ClipNorm(1.0, where="loose"), Decay(0.1, where="loose")):
        with pytest.raises(ConfigurationError, match=r"loose\.weight.*never act"):
            make_trainer(model, plugin, optimizer=optimizer)


@pytest.mark.parametrize("replace", ["assigned", "weight_norm"])
def test_a_parameter_replaced_after_the_optimizer_was_built_is_refused_by_name(replace):
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if replace == "assigned":
        model[0].weight = nn.Parameter(torch.ones(2, 2))
    else:
        weight_norm(model[0])
    with pytest.raises(ConfigurationError, match=r"0\.weight.*Build the optimizer afterwards"):
        make_trainer(model, optimizer=optimizer)
