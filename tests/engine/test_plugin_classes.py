"""A plugin class that could not work fails when it is made; a plugin can be compared, printed, pickled and written down."""

import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import weightsmith_plugins
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from torch import nn
from weightsmith import (
    ConfigurationError,
    Constraint,
    GradientEditor,
    Initializer,
    Penalty,
    Plugin,
    PluginContractError,
    PluginDefinitionError,
    Trainer,
    WeightEditor,
    WeightEvents,
    biases,
    cosine,
    everything,
    linear,
    matrices,
    named,
    piecewise,
)
from weightsmith.recipe import from_plain
from weightsmith_plugins import L2, Clamp, ClipNorm, Constant, KaimingNormal, MaxNorm


class Mapped(WeightEditor):
    """w ← function(w)."""

    function: Callable[[torch.Tensor], torch.Tensor] = nn.functional.relu
    powers: tuple[int, ...] = ()

    def edit(self, weight, gradient, site):
        return self.function(weight)


def negated(weight):
    return -weight


# ---------------------------------------------------------------- classes that could not work


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
        function: Callable[[torch.Tensor], torch.Tensor] = lambda weight: weight  # noqa: E731

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


# ---------------------------------------------------------------- plugins as values

FINITE = st.floats(-1e6, 1e6)
POSITIVE = st.floats(1e-6, 1e6)
SCHEDULED = st.one_of(
    POSITIVE,
    st.builds(linear, POSITIVE, POSITIVE),
    st.builds(cosine, POSITIVE, POSITIVE, over=st.integers(1, 9), after=st.integers(0, 9)),
    st.builds(lambda a, b: piecewise({0: a, "3 epochs": b}), POSITIVE, POSITIVE),
)
COMMON = {
    "where": st.sampled_from(["fc1", "@Linear", ["a", "b.*"], everything & ~biases, named("x") | matrices, nn.Conv2d]),
    "every": st.integers(1, 5),
    "after": st.sampled_from([0, 3, "2 epochs"]),
    "before": st.sampled_from([None, 9, "4 epochs"]),
    "at": st.sampled_from([None, Events.EPOCH_COMPLETED, "ITERATION_COMPLETED", WeightEvents.UPDATE_COMPLETED]),
}
PLUGINS = st.one_of(
    st.builds(L2, SCHEDULED, mode=st.sampled_from(["loss", "decoupled", "proximal"]), **COMMON),
    st.builds(MaxNorm, SCHEDULED, mode=st.sampled_from(["project", "forward"]), **COMMON),
    st.builds(Clamp, FINITE, st.none(), **COMMON),
    st.builds(ClipNorm, SCHEDULED, **COMMON),
    st.builds(Constant, FINITE),
    st.builds(KaimingNormal, st.sampled_from(["fan_in", "fan_out"]), negative_slope=FINITE),
    st.builds(Mapped, st.sampled_from([nn.functional.relu, negated]), st.lists(st.integers(0, 5)), **COMMON),
)
NAMES = {name: getattr(weightsmith_plugins, name) for name in weightsmith_plugins.__all__}
NAMES |= {"Mapped": Mapped, "linear": linear, "cosine": cosine, "piecewise": piecewise}
NAMES |= {"named": named, "matrices": matrices, "biases": biases, "everything": everything}


@given(PLUGINS)
@settings(max_examples=100, deadline=None)
def test_plugins_survive_pickle_and_yaml(plugin):
    for copy in (
        pickle.loads(pickle.dumps(plugin)),
        from_plain(yaml.safe_load(yaml.safe_dump(plugin.to_plain()))),
        dataclasses.replace(plugin),
    ):
        assert copy == plugin
        assert hash(copy) == hash(plugin)
        assert repr(copy) == repr(plugin)


@given(PLUGINS.filter(lambda plugin: not isinstance(plugin, Mapped)))
@settings(max_examples=60, deadline=None)
def test_evaluating_the_repr_gives_the_plugin_again(plugin):
    from weightsmith.selection import selector

    assert eval(repr(plugin), {**NAMES, "selector": selector}) == plugin


def test_equality_looks_at_class_and_every_setting():
    assert L2(0.1) == L2(0.1, where=matrices) != L2(0.1, where="fc1")
    assert L2(0.1) != L2(0.2)
    assert L2(0.1, at="EPOCH_COMPLETED") == L2(0.1, at=Events.EPOCH_COMPLETED)
    assert L2(0.1) != weightsmith_plugins.L1(0.1)
    assert repr(L2(0.1, every=1)) == "L2(strength=0.1)"


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ({"MaxNrom": {"limit": 1.0}}, "MaxNorm"),
        ({"MaxNorm": {"limt": 1.0}}, "limit"),
        ({"MaxNorm": {"limit": 1.0}, "L2": {"strength": 1.0}}, "one class name"),
        ({"torch.nn.Linear": {}}, "no plugin class"),
    ],
)
def test_a_recipe_that_could_not_work_names_the_nearest(plain, words):
    with pytest.raises(ConfigurationError, match=words):
        from_plain(plain)


# ---------------------------------------------------------------- when a plugin acts


def batches(count):
    return [(torch.ones(1, 2), torch.zeros(1, 2))] * count


def make_trainer(*plugins):
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    return Trainer(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.functional.mse_loss, plugins=plugins)


def acted(per_epoch=4, epochs=3, **when):
    """The (update, epoch) pairs at which an editor with these settings acted."""
    seen = []

    class Look(WeightEditor):
        def edit(self, weight, gradient, site):
            seen.append((site.update, site.epoch))
            return weight

    make_trainer(Look(where="weight", **when)).run(batches(per_epoch), max_epochs=epochs)
    return seen


@given(st.integers(1, 5), st.integers(0, 8), st.none() | st.integers(0, 14))
@settings(max_examples=25, deadline=None)
def test_every_after_and_before_follow_their_formula(every, after, before):
    last = 13 if before is None else before
    expected = [u for u in range(1, 13) if after < u < last and (u - after) % every == 0]
    assert [update for update, _ in acted(every=every, after=after, before=before)] == expected


@pytest.mark.parametrize(
    ("when", "epochs"),
    [({"after": "2 epochs"}, [3]), ({"before": "2 epochs"}, [1]), ({"after": "1 epoch", "before": "3 epochs"}, [2])],
)
def test_epochs_are_compared_with_the_epoch(when, epochs):
    assert acted(**when) == [(4 * (e - 1) + i, e) for e in epochs for i in range(1, 5)]


def test_at_moves_it_to_another_event_and_its_count():
    assert acted(at=Events.EPOCH_COMPLETED, every=2) == [(8, 2)]
    assert acted(at="EPOCH_STARTED", after=1) == [(4, 2), (8, 3)]
    assert acted(at=WeightEvents.GRADIENTS_READY, before=3) == [(1, 1), (2, 1)]


def test_the_run_at_the_start_ignores_them():
    trainer, started = make_trainer(Constant(5.0, every=3, after=2), Clamp(-1.0, 1.0, every=4, after=3)), []
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: started.append(trainer.model.weight.detach().clone()))
    trainer.run(batches(1))
    assert started[0].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_plain_plugin_hears_what_it_subscribes_to():
    seen = []

    class Listen(Plugin):
        def subscriptions(self, trainer):
            yield WeightEvents.UPDATE_COMPLETED(every=2), lambda engine: seen.append(engine.state.update)
            yield Events.COMPLETED, lambda: seen.append("done")

    class Start(Initializer):
        def draw(self, weight, site):
            return torch.zeros_like(weight)

    make_trainer(Listen(), Start()).run(batches(5))
    assert seen == [2, 4, "done"]
