"""A plugin class, or a plugin, that could not work fails when it is made, and the message says the mend."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from ignite.engine import Events
from torch import nn
from weightsmith import (
    ConfigurationError,
    Constraint,
    GradientEditor,
    Penalty,
    PluginContractError,
    PluginDefinitionError,
    Trainer,
    WeightEditor,
)
from weightsmith_plugins import L1, L2, ClipNorm, MaxNorm, TopK


class Mapped(WeightEditor):
    """w ← function(w)."""

    function: Callable[[torch.Tensor], torch.Tensor] = nn.functional.relu
    powers: tuple[int, ...] = ()

    def edit(self, weight, gradient, site):
        return self.function(weight)


def batches(count):
    return [(torch.ones(1, 2), torch.zeros(1, 2))] * count


def make_trainer(*plugins):
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    return Trainer(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.functional.mse_loss, plugins=plugins)


def misspelt_method():
    class Bad(Constraint):
        def projcet(self, weight, site):
            return weight


def near_miss_of_a_plural():
    class Bad(Constraint):
        def project(self, weight, site):
            return weight

        def project_all(self, weights, sites):
            pass


def near_miss_of_an_inherited_hook():
    class Bad(L2):
        def gradients(self, weight, site):
            return weight


def missing_method():
    class Bad(Penalty):
        strength: float = 1.0


def missing_parameter():
    class Bad(Constraint):
        def project(self, weight):
            return weight


def surplus_parameter():
    class Bad(GradientEditor):
        def edit(self, gradient, weight, site, more):
            return gradient


def unannotated_field():
    class Bad(Constraint):
        limit = 1.0

        def project(self, weight, site):
            return weight


def own_post_init():
    class Bad(Constraint):
        def __post_init__(self):
            pass

        def project(self, weight, site):
            return weight


def plain_dataclass():
    @dataclass
    class Bad(Constraint):
        limit: float = 1.0

        def project(self, weight, site):
            return weight


def frozen_dataclass():
    @dataclass(frozen=True)
    class Bad(Constraint):
        limit: float = 1.0

        def project(self, weight, site):
            return weight


def tensor_default():
    class Bad(Constraint):
        bounds: torch.Tensor = torch.ones(2)

        def project(self, weight, site):
            return weight


def object_default():
    class Bad(Constraint):
        bounds: object = object()

        def project(self, weight, site):
            return weight


@pytest.mark.parametrize(
    ("define", "mend"),
    [
        (misspelt_method, "did you mean `project`"),
        (near_miss_of_a_plural, "did you mean `project_all_`"),
        (near_miss_of_an_inherited_hook, "did you mean `gradient`"),
        (missing_method, "does not define `cost`"),
        (missing_parameter, r"write `def project\(self, weight, site\)`"),
        (surplus_parameter, r"write `def edit\(self, gradient, weight, site\)`"),
        (unannotated_field, r"`limit: float = 1\.0`"),
        (own_post_init, "validate"),
        (plain_dataclass, "remove the decorator"),
        (frozen_dataclass, "remove the decorator"),
        (tensor_default, "nested list, or a file's path"),
        (object_default, "functions defined at the top of a module"),
    ],
)
def test_a_class_that_could_not_work_fails_when_it_is_made(define, mend):
    with pytest.raises(PluginDefinitionError, match=mend) as caught:
        define()
    assert "Bad" in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_helpers_constants_and_extra_options_are_no_mistakes():
    class Good(Constraint):
        limit: float = 1.0
        unit: ClassVar[str] = "m"

        def project(self, weight, site, *, strict=False):
            return self._projected(weight)

        def _projected(self, weight):
            return weight * 0

        def describe(self):
            return self.unit

    assert [f.name for f in dataclasses.fields(Good) if not f.kw_only] == ["limit"]
    assert Good(2.0)(torch.ones(2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "mend"),
    [
        (lambda: L2(torch.ones(1)), r"L2\.strength.*nested list"),
        (lambda: L2(object()), r"L2\.strength.*numbers, texts"),
        (lambda: Mapped(lambda weight: weight), "top of a module"),
        (lambda: Mapped(powers=[1, torch.ones(1)]), r"Mapped\.powers.*nested list"),
        (lambda: L2(0.1, where=lambda name, parameter, module: True), "top of a module"),
        (lambda: L2(0.1, every=0), "at least 1"),
        (lambda: L2(0.1, every=1.5), "whole number"),
        (lambda: L2(0.1, after="2 weeks"), "5 epochs"),
        (lambda: L2(0.1, before=-1), "negative"),
        (lambda: L2(0.1, at="EPOCH_ENDED"), r"EPOCH_ENDED.*WeightEvents"),
        (lambda: L2(0.1, at=Events.EPOCH_COMPLETED(every=2)), r"without a filter.*every="),
        (lambda: L2(-0.1), "strength must be at least 0"),
    ],
)
def test_a_value_that_could_not_work_fails_when_the_plugin_is_made(make, mend):
    with pytest.raises(ConfigurationError, match=mend):
        make()


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Mapped(lambda weight: weight), "function"),
        (lambda: L2(0.1, where=lambda name, parameter, module: True), "where"),
        (lambda: L2(0.1, after="2 weeks"), "after"),
        (lambda: L2(torch.ones(1)), "strength"),
    ],
)
def test_a_refused_value_is_named_with_its_class_and_field(make, field):
    with pytest.raises(ConfigurationError, match=rf"(Mapped|L2)\.{field}"):
        make()


def test_a_lambda_as_default_fails_before_the_first_batch():
    class Bad(WeightEditor):
        function: Callable[[torch.Tensor], torch.Tensor] = lambda weight: weight

        def edit(self, weight, gradient, site):
            return self.function(weight)

    with pytest.raises(ConfigurationError, match="top of a module"):
        Bad()


def test_plugins_are_frozen():
    plugin = L2(0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plugin.strength = 0.2


def test_a_plugin_that_is_no_plugin_is_refused():
    with pytest.raises(ConfigurationError, match="no plugin"):
        make_trainer(nn.Linear(1, 1))


def test_a_result_of_another_shape_is_refused_naming_plugin_weight_and_event():
    class Narrow(WeightEditor):
        def edit(self, weight, gradient, site):
            return weight[:1, :1]

    with pytest.raises(PluginContractError, match=r"Narrow.*\(1, 1\).*\(2, 2\)") as caught:
        make_trainer(Narrow(where="weight")).run(batches(1))
    assert all(word in "".join(caught.value.__notes__) for word in ("Narrow", "weight", "STEP_COMPLETED"))


class HundredEverywhere(L1):
    def gradient(self, weight, site):
        return 100 * torch.ones_like(weight)


class Squares(L1):
    def cost(self, weight, site):
        return self.strength * weight.square().sum()


class Zero(TopK):
    def project(self, weight, site):
        return torch.zeros_like(weight)


class Centre(MaxNorm):  # not unit by unit, as its base
    def project(self, weight, site):
        return weight - weight.mean()


class Doubled(ClipNorm):
    def edit(self, gradient, weight, site):
        return 2 * gradient


@pytest.mark.parametrize(
    ("plugin", "wanted"),
    [
        (HundredEverywhere(0.1), lambda w: w - 100),
        (Squares(0.1), lambda w: w - 0.2 * w),
        (Zero(0.5), torch.zeros_like),
        (Centre(1.0), lambda w: w - w.mean()),
    ],
)
def test_what_a_subclass_writes_anew_is_what_training_does(plugin, wanted):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False))
    before = [layer.weight.detach().clone() for layer in model]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def step(trainer, batch):
        return trainer.update(sum(0 * layer.weight.sum() for layer in model))

    Trainer(model, optimizer, step=step, plugins=[plugin]).run([None], max_epochs=1)
    for layer, start in zip(model, before, strict=True):
        torch.testing.assert_close(layer.weight.detach(), wanted(start))


def test_an_inherited_proximal_map_of_another_cost_is_refused():
    model = nn.Linear(2, 2)
    plugins = [Squares(0.1, mode="proximal")]
    with pytest.raises(ConfigurationError, match="Squares has no proximal form"):
        Trainer(model, torch.optim.SGD(model.parameters(), lr=1.0), nn.MSELoss(), plugins=plugins)


def test_an_edit_written_anew_is_the_one_that_acts():
    model = nn.Linear(2, 1, bias=False)
    start = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = Trainer(model, optimizer, step=lambda t, b: t.update(model.weight.sum()), plugins=[Doubled(1.0)])
    trainer.run([None], max_epochs=1)
    assert torch.equal(model.weight.detach(), start - 2)
