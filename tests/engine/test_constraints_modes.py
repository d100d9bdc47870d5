"""One set, two ways to stay in it: project the weight after every update, or compute with its projection."""

from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from weightsmith import (
    ConfigurationError,
    ConflictError,
    Constraint,
    PluginContractError,
    Trainer,
    UnsupportedWeightError,
    WeightEvents,
)
from weightsmith_plugins import Clamp, MaxNorm, NonNegative, UnitNorm

CONSTRAINTS = [Clamp(-0.2, 0.3), NonNegative(), MaxNorm(0.5), UnitNorm()]


class Rounded(Constraint):
    """Halves, straight through."""

    forward_gradient: ClassVar[str] = "straight-through"

    def project(self, weight, site):
        return (2 * weight).round() / 2


class Sign(Constraint):
    """Plus or minus one: no useful gradient."""

    forward_gradient: ClassVar[str] = "none"

    def project(self, weight, site):
        return torch.where(weight >= 0, 1.0, -1.0)


def by_hand(constraint, w):
    """The projections, written out a second time."""
    norms = w.pow(2).sum(1, keepdim=True).sqrt()
    match constraint:
        case Clamp():
            return torch.minimum(torch.maximum(w, torch.tensor(-0.2)), torch.tensor(0.3))
        case NonNegative():
            return torch.relu(w)
        case MaxNorm():
            return torch.where(norms > 0.5, w / norms * 0.5, w)
        case UnitNorm():
            return w / norms
        case Rounded():
            return torch.floor(2 * w + 0.5) / 2


def forward(constraint):
    return type(constraint)(*own_values(constraint), mode="forward")


def own_values(constraint):
    return {Clamp: (-0.2, 0.3), MaxNorm: (0.5,)}.get(type(constraint), ())


def make_layer(seed=0):
    torch.manual_seed(seed)
    layer = nn.Linear(3, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 3))
    return layer


INPUTS, TARGETS = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(5, 4)


def make_trainer(layer, *plugins, lr=0.1):
    return Trainer(layer, torch.optim.SGD(layer.parameters(), lr=lr), nn.functional.mse_loss, plugins=plugins)


def run(trainer, updates=1):
    trainer.run([(INPUTS, TARGETS)] * updates, max_epochs=1)


def assert_inside(constraint, weight):
    torch.testing.assert_close(weight.detach(), by_hand(constraint, weight.detach()), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
def test_both_modes_keep_the_layer_in_the_same_set_at_every_forward_pass(constraint):
    for plugin in (constraint, forward(constraint)):
        layer, seen = make_layer(), []
        trainer = make_trainer(layer, plugin)
        layer.register_forward_pre_hook(lambda module, args, into=seen: into.append(module.weight.detach().clone()))
        run(trainer, 4)
        assert len(seen) == 4
        assert not torch.equal(seen[0], seen[-1]), "it trains"
        for weight in [*seen, layer.weight]:
            assert_inside(constraint, weight)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
def test_both_modes_start_from_the_projection_of_the_pretrained_weight(constraint):
    projected, computed = make_layer(), make_layer()
    run(make_trainer(projected, constraint, lr=0.0))
    make_trainer(computed, forward(constraint))
    expected = by_hand(constraint, make_layer().weight)
    torch.testing.assert_close(projected.weight, expected)
    torch.testing.assert_close(computed.weight, expected)


def test_forward_keeps_the_pretrained_parameter_itself():
    layer = make_layer()
    parameter, value = layer.weight, layer.weight.detach().clone()
    trainer = make_trainer(layer, MaxNorm(0.5, mode="forward"))
    assert layer.parametrizations.weight.original is parameter
    assert torch.equal(parameter, value)
    assert trainer.weights("weight") == {"weight": parameter}
    assert trainer.plan().rows[0].event == "FORWARD"


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
def test_forward_trains_along_the_gradient_through_the_projection(constraint):
    layer = make_layer()
    raw = layer.weight.detach().clone().requires_grad_()
    bias = layer.bias.detach().clone().requires_grad_()
    trainer = make_trainer(layer, forward(constraint))
    for _ in range(3):
        loss = nn.functional.mse_loss(INPUTS @ by_hand(constraint, raw).T + bias, TARGETS)
        gradients = torch.autograd.grad(loss, [raw, bias])
        with torch.no_grad():
            raw -= 0.1 * gradients[0]
            bias -= 0.1 * gradients[1]
    run(trainer, 3)
    torch.testing.assert_close(trainer.weights("weight")["weight"], raw)
    torch.testing.assert_close(layer.bias, bias)


def test_forward_straight_through_passes_the_gradient_unchanged():
    layer = make_layer()
    raw = layer.weight.detach().clone()
    trainer = make_trainer(layer, Rounded(mode="forward"))
    rounded = by_hand(Rounded(), raw).requires_grad_()
    loss = nn.functional.mse_loss(INPUTS @ rounded.T + layer.bias.detach(), TARGETS)
    (gradient,) = torch.autograd.grad(loss, rounded)
    torch.testing.assert_close(layer.weight, rounded)
    run(trainer)
    torch.testing.assert_close(trainer.weights("weight")["weight"], raw - 0.1 * gradient)


class Turned(Constraint):
    def project(self, weight, site):
        return weight.T


class Forgetful(Constraint):
    def project(self, weight, site):
        weight.clamp(0)


@pytest.mark.parametrize(("plugin", "got"), [(Turned, "shape"), (Forgetful, "None")])
@pytest.mark.parametrize("mode", ["project", "forward"])
def test_a_projection_of_another_shape_is_refused_in_both_modes(plugin, got, mode):
    layer = make_layer()
    units, values = layer.weight.shape
    match = rf"{plugin.__name__}.* {got}.* shape \({units}, {values}\): return a tensor"
    with pytest.raises(PluginContractError, match=match):
        run(make_trainer(layer, plugin(mode=mode)))


def test_forward_without_a_useful_gradient_is_refused_and_changes_nothing():
    layer = make_layer()
    with pytest.raises(ConfigurationError, match=r"Sign.*no useful gradient.*mode='project'"):
        make_trainer(layer, Sign(mode="forward"))
    assert not parametrize.is_parametrized(layer)
    with pytest.raises(ConfigurationError, match=r"is not one of 'project', 'forward'"):
        make_trainer(layer, Clamp(0.0, mode="sideways"))


@pytest.mark.parametrize(("constraint", "is_advised"), [(Clamp(-0.2, 0.3), True), (Sign(), False)])
def test_projecting_a_parametrized_weight_is_refused_with_a_way_out_that_there_is(constraint, is_advised):
    layer = nn.utils.parametrizations.weight_norm(make_layer())
    with pytest.raises(UnsupportedWeightError, match="leave it out with `where`") as refused:
        Trainer(layer, torch.optim.SGD(layer.parameters(), lr=0.1), nn.MSELoss(), plugins=[constraint])
    assert ("use mode='forward'" in str(refused.value)) == is_advised


def test_forward_on_a_tied_weight_is_refused_by_both_names():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    with pytest.raises(ConfigurationError, match=r"'a\.weight'.*'b\.weight'.*mode='project'"):
        make_trainer(model, NonNegative(mode="forward"))
    assert not parametrize.is_parametrized(model["a"])


# ---------------------------------------------------------------- detaching


def test_detaching_a_projection_lets_the_weight_leave_the_set():
    layer = make_layer()
    plugin = MaxNorm(0.01)
    trainer = make_trainer(layer, plugin)
    run(trainer)
    trainer.detach(plugin)
    assert trainer.plugins == ()
    assert trainer.violations() == {}
    run(trainer, 3)
    assert layer.weight.norm(dim=1).max() > 0.011


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
def test_detaching_a_forward_constraint_leaves_a_plain_layer_that_goes_on_training(constraint):
    layer = make_layer()
    parameter, names = layer.weight, list(layer.state_dict())
    plugin = forward(constraint)
    trainer = make_trainer(layer, plugin)
    run(trainer)
    computed = layer.weight.detach().clone()
    trainer.detach(plugin)
    assert not parametrize.is_parametrized(layer)
    assert sorted(layer.state_dict()) == sorted(names)
    assert layer.weight is parameter
    assert torch.equal(layer.weight, computed)
    run(trainer)
    assert not torch.equal(layer.weight, computed)


def test_detaching_inside_an_update_takes_effect_at_the_next():
    layer = make_layer()
    plugin = Clamp(-0.01, 0.01)
    trainer, seen = make_trainer(layer, plugin), []
    trainer.add_event_handler(WeightEvents.GRADIENTS_READY(once=2), lambda: trainer.detach(plugin))
    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, lambda: seen.append(layer.weight.detach().abs().max()))
    run(trainer, 3)
    assert [bool(largest <= 0.01) for largest in seen] == [True, True, False]


# ---------------------------------------------------------------- conflicts and violations


@pytest.mark.parametrize("modes", [("project", "project"), ("project", "forward"), ("forward", "forward")])
def test_two_constraints_on_one_weight_are_refused_naming_both_and_the_weight(modes):
    model = nn.Sequential(make_layer(), nn.Linear(4, 2))
    with pytest.raises(ConflictError) as caught:
        make_trainer(model, MaxNorm(1.0, where="0", mode=modes[0]), NonNegative(mode=modes[1]))
    assert [word for word in ("MaxNorm(", "NonNegative(", "'0.weight'") if word not in str(caught.value)] == []


def test_constraints_on_different_weights_are_no_conflict():
    model = nn.Sequential(make_layer(), nn.Linear(4, 2))
    run(make_trainer(nn.Sequential(model, nn.Linear(2, 4)), MaxNorm(1.0, where="0.0"), NonNegative(where=["0.1", "1"])))
    assert_inside(NonNegative(), model[1].weight)


def test_violations_tell_how_far_outside_each_weight_is():
    layer = make_layer()
    plugin = Clamp(-0.25, 0.5, where="weight")
    trainer = make_trainer(layer, plugin)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0], layer.weight[1, 1] = 0.75, -1.25
    assert trainer.violations() == {(plugin, "weight"): 1.0}
    run(trainer)
    assert trainer.violations() == {(plugin, "weight"): 0.0}


def test_violations_of_a_forward_constraint_are_those_of_what_the_layer_computes_with():
    layer = make_layer()
    plugin = NonNegative(mode="forward")
    assert make_trainer(layer, plugin).violations() == {(plugin, "weight"): 0.0}


@pytest.mark.parametrize("constraint", [*CONSTRAINTS, Rounded()], ids=repr)
def test_a_feasible_weight_is_left_bit_for_bit_alone(constraint):
    layer = make_layer()
    run(make_trainer(layer, constraint, lr=0.0))
    once = layer.weight.detach().clone()
    run(make_trainer(layer, constraint, lr=0.0), 5)
    assert torch.equal(layer.weight, once)


def test_a_weight_a_rounding_error_outside_is_left_bit_for_bit_alone():
    layer = make_layer()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.6, 0.8, 0.0]]) * (1 + 2e-7))
    assert layer.weight.double().norm(dim=1).min() > 1
    before = layer.weight.detach().clone()
    run(make_trainer(layer, MaxNorm(1.0), lr=0.0))
    assert torch.equal(layer.weight, before)
