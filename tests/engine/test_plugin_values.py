"""Plugins are values: compared, hashed, printed, pickled, written to YAML; and act when their settings say."""

import dataclasses
import inspect
import pickle
from collections.abc import Callable

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
    Initializer,
    Plugin,
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
from weightsmith.selection import selector
from weightsmith_plugins import L2, Clamp, ClipNorm, Constant, KaimingNormal, MaxNorm


class Mapped(WeightEditor):
    """w ← function(w)."""

    function: Callable[[torch.Tensor], torch.Tensor] = nn.functional.relu
    powers: tuple[int, ...] = ()

    def edit(self, weight, gradient, site):
        return self.function(weight)


def negated(weight):
    return -weight


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
    if before is not None and after >= before:
        with pytest.raises(ConfigurationError, match="it would never act"):
            acted(every=every, after=after, before=before)
        return
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaxNorm(), r"^MaxNorm needs limit: MaxNorm\(limit=…\)"),
        (lambda: L2(0.1, 0.2), r"^L2 was given 2 values, and takes strength"),
        (lambda: L2(0.1, mode="weighed"), r"L2\.mode: 'weighed' is not one of 'loss', 'decoupled', 'proximal'"),
        (lambda: MaxNorm(1.0, mode="sideways"), r"MaxNorm\.mode: 'sideways' is not one of 'project', 'forward'"),
        (lambda: MaxNorm(1.0, momentum="zero"), r"MaxNorm\.momentum: 'zero' is not one of"),
        (lambda: KaimingNormal("fan_avg"), r"KaimingNormal\.mode: 'fan_avg' is not one of 'fan_in', 'fan_out'"),
        (lambda: weightsmith_plugins.FakeQuantize(observer="max"), "observer: 'max' is not one of 'minmax', 'mse'"),
        (lambda: weightsmith_plugins.Unfreeze(["a"], 2), "count must be from 0 to 1, the number of layers"),
        (lambda: L2(0.1, where=nn.Linear(1, 1).weight), "was given a Parameter itself: give its name"),
        (lambda: L2(0.1, where=nn.Linear(1, 1)), "was given a Linear itself: give its name"),
        (lambda: weightsmith_plugins.Intersection(MaxNorm(1.0)), "give two constraints or more"),
    ],
)
def test_a_plugin_that_cannot_be_is_refused_when_it_is_made(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_help_shows_the_fields():
    assert str(inspect.signature(MaxNorm)).startswith("(limit: 'float', *, where: ")
    assert str(inspect.signature(weightsmith_plugins.Intersection)).startswith("(*constraints: ")


def test_pairs_may_be_written_as_a_dict():
    pairs = weightsmith_plugins.Pretrained("a.pt", rename=[["^old", "new"]], adapt=[["head", "leave"], ["*", "refuse"]])
    assert pairs == weightsmith_plugins.Pretrained(
        "a.pt", rename={"^old": "new"}, adapt={"head": "leave", "*": "refuse"}
    )


def test_many_may_be_given_as_a_list():
    two = [MaxNorm(1.0), Clamp(0.0)]
    assert weightsmith_plugins.Intersection(two) == weightsmith_plugins.Intersection(*two)


def test_a_text_may_stand_on_either_side_of_a_selector():
    assert "fc" & matrices == named("fc") & matrices
    assert "fc" | biases == named("fc") | biases
