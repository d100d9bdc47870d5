"""Schedules: their curves, what they refuse, and the value that a plugin sees at each update of a run."""

import contextlib
import math

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from torch import nn
from weightsmith import (
    ConfigurationError,
    GradientEditor,
    Progress,
    Trainer,
    WeightEditor,
    WeightEvents,
    cosine,
    cubic,
    exponential,
    function,
    linear,
    piecewise,
)
from weightsmith.recipe import from_plain
from weightsmith_plugins import L2

SHAPES = {"linear": linear, "cosine": cosine, "cubic": cubic, "exponential": exponential}
CLOSED_FORMS = {
    "linear": lambda a, b, t: (1 - t) * a + t * b,
    "cosine": lambda a, b, t: b + 0.5 * (a - b) * (1 + math.cos(math.pi * t)),
    "cubic": lambda a, b, t: b + (a - b) * (1 - t) ** 3,
    "exponential": lambda a, b, t: math.exp((1 - t) * math.log(a) + t * math.log(b)),
}
VALUES = st.floats(1e-3, 1e3)
NAMES = st.sampled_from(sorted(SHAPES))


class Fill(WeightEditor):
    """Writes its own number into every weight, where a test can read it."""

    value: float

    def edit(self, weight, gradient, site):
        assert type(self.value) is float
        return torch.full_like(weight, self.value)


class FillFromPair(WeightEditor):
    pair: tuple[float, float] = (0.0, 0.0)

    def edit(self, weight, gradient, site):
        return torch.full_like(weight, self.pair[1])


class ScaleGradient(GradientEditor):
    factor: float

    def edit(self, gradient, weight, site):
        return gradient * self.factor


def squared_update(progress):
    return float(progress.update**2)


not_callable = 3


def make_trainer(*plugins, accumulate=1):
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return Trainer(model, optimizer, nn.functional.mse_loss, plugins=plugins, accumulate=accumulate)


def batches(count):
    return [(torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64))] * count


def values_seen(schedule, *, per_epoch, epochs, accumulate=1):
    trainer, seen = make_trainer(Fill(schedule), accumulate=accumulate), []
    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, lambda: seen.append(trainer.model.weight.item()))
    trainer.run(batches(per_epoch), max_epochs=epochs)
    return seen


@given(NAMES, VALUES, VALUES, st.integers(1, 50), st.integers(0, 50), st.integers(0, 120))
@settings(max_examples=150, deadline=None)
def test_curves_follow_their_closed_forms(name, start, end, over, after, count):
    share = min(max((count - after) / over, 0.0), 1.0)
    expected = CLOSED_FORMS[name](start, end, share)
    by_updates = SHAPES[name](start, end, over=over, after=after)
    by_epochs = SHAPES[name](start, end, over=f"{over} epochs", after=f"{after} epochs")
    assert by_updates(Progress(update=count, epoch=0)) == pytest.approx(expected, rel=1e-9)
    assert by_epochs(Progress(update=0, epoch=count)) == by_updates(Progress(update=count))
    slack = 1e-9 * max(start, end)
    assert min(start, end) - slack <= by_updates(Progress(update=count)) <= max(start, end) + slack


@given(NAMES, VALUES, VALUES, st.integers(1, 50), st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_start_holds_up_to_after_and_end_is_reached_exactly(name, start, end, over, after):
    schedule = SHAPES[name](start, end, over=over, after=after)
    assert {schedule(Progress(update=u)) for u in range(after + 1)} == {start}
    assert {schedule(Progress(update=after + over + u)) for u in (0, 1, 1000)} == {end}


@given(NAMES, VALUES, VALUES, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_without_a_span_it_is_the_planned_run(name, start, end, share):
    value = SHAPES[name](start, end)(Progress(share=share))
    assert value == pytest.approx(CLOSED_FORMS[name](start, end, share), rel=1e-9)


def test_exponential_keeps_a_constant_ratio_also_between_negative_numbers():
    values = [exponential(-1.0, -16.0, over=4)(Progress(update=u)) for u in range(5)]
    assert values == pytest.approx([-1, -2, -4, -8, -16])


@given(st.lists(st.integers(1, 40), unique=True, max_size=4).map(sorted), st.integers(0, 60), st.booleans())
@settings(max_examples=60, deadline=None)
def test_piecewise_changes_after_each_bound(bounds, count, epochs):
    keys = [0, *(f"{b} epochs" if epochs else b for b in bounds)]
    schedule = piecewise({key: float(i) for i, key in enumerate(keys)})
    progress = Progress(epoch=count) if epochs else Progress(update=count)
    assert schedule(progress) == sum(count > bound for bound in bounds)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: linear(0, 1, over=0), "over must be at least 1"),
        (lambda: linear(0, 1, over=-3), "negative"),
        (lambda: linear(0, 1, over=5, after=-1), "negative"),
        (lambda: linear(0, 1, over="5 weeks"), "5 epochs"),
        (lambda: linear(0, 1, over="five epochs"), "5 epochs"),
        (lambda: linear(0, 1, over=2.5), "5 epochs"),
        (lambda: linear(0, 1, over=True), "5 epochs"),
        (lambda: linear(0, 1, after=5), "after needs an over"),
        (lambda: linear(0, 1, over="5 epochs", after=3), "both"),
        (lambda: exponential(0.0, 1.0, over=3), "non-zero"),
        (lambda: exponential(1.0, -1.0, over=3), "one sign"),
        (lambda: piecewise({}), "begin at 0"),
        (lambda: piecewise({5: 1.0}), "begin at 0"),
        (lambda: piecewise({0: 1.0, 5: 2.0, 3: 3.0}), "grow"),
        (lambda: piecewise({0: 1.0, 5: 2.0, "7 epochs": 3.0}), "all"),
        (lambda: function("no_such_module.f"), "no_such_module.f"),
        (lambda: function(f"{__name__}.not_callable"), "no function"),
        (lambda: function(lambda progress: 1.0), "top of a module"),
    ],
)
def test_what_cannot_work_is_refused_when_made(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_without_a_known_length_the_planned_run_is_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"linear\(0\.0, 1\.0\).*over="):
        linear(0.0, 1.0)(Progress(share=None))


def test_a_misspelt_setting_in_a_recipe_is_a_configuration_error():
    with pytest.raises(ConfigurationError, match="begin"):
        from_plain({"L2": {"strength": {"linear": {"begin": 1.0, "end": 0.0}}}})


@pytest.mark.parametrize(
    "schedule",
    [
        linear(1.0, 0.0),
        cosine(1, 0, over="3 epochs", after="1 epoch"),
        exponential(1.0, 1e-5, over=7, after=2),
        cubic(0.0, 0.5, over=100),
        piecewise({0: 0.1, 10: 0.01}),
        piecewise({0: 0.1, "2 epochs": 0.01}),
        function(squared_update),
    ],
)
def test_schedules_survive_repr_and_yaml_in_a_plugin(schedule):
    assert eval(repr(schedule)) == schedule
    plugin = L2(schedule)
    read = from_plain(yaml.safe_load(yaml.safe_dump(plugin.to_plain())))
    assert read == plugin
    assert read.strength == schedule
    assert hash(read) == hash(plugin)


def test_calling_changes_nothing():
    schedule = cosine(1.0, 0.0, over=10, after=2)
    forwards = [schedule(Progress(update=u)) for u in range(20)]
    backwards = [schedule(Progress(update=u)) for u in reversed(range(20))]
    assert forwards == backwards[::-1]


# ---------------------------------------------------------------- in a run


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (linear(0.0, 1.0, over=4), [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]),
        (linear(0.0, 1.0, over=2, after=2), [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]),
        (linear(0.0, 3.0, over="3 epochs"), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]),
        (linear(0.0, 6.0), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        (piecewise({0: 1.0, 2: 5.0, 5: 7.0}), [1.0, 1.0, 5.0, 5.0, 5.0, 7.0]),
        (piecewise({0: 1.0, "1 epoch": 5.0}), [1.0, 1.0, 5.0, 5.0, 5.0, 5.0]),
        (function(squared_update), [1.0, 4.0, 9.0, 16.0, 25.0, 36.0]),
        (squared_update, [1.0, 4.0, 9.0, 16.0, 25.0, 36.0]),
    ],
)
def test_the_value_used_at_each_update(schedule, expected):
    assert values_seen(schedule, per_epoch=2, epochs=3) == pytest.approx(expected)


def test_updates_are_counted_not_batches():
    assert values_seen(linear(0.0, 1.0, over=4), per_epoch=4, epochs=2, accumulate=2) == [0.25, 0.5, 0.75, 1.0]


def test_a_resumed_run_sees_the_same_values():
    schedule = cosine(1.0, 0.0, over=8)
    whole = values_seen(schedule, per_epoch=3, epochs=4)
    first, second, seen = make_trainer(Fill(schedule)), make_trainer(Fill(schedule)), []
    for trainer in (first, second):
        trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, lambda t: seen.append(t.model.weight.item()))
    first.add_event_handler(Events.EPOCH_COMPLETED(once=2), first.terminate)
    first.run(batches(3), max_epochs=4)
    second.load_state_dict(first.state_dict())
    second.run(batches(3), max_epochs=4)
    assert seen == whole


def test_a_scheduled_penalty_adds_that_updates_gradient():
    trainer, seen = make_trainer(L2(linear(0.0, 1.0, over=4))), []
    with torch.no_grad():
        trainer.model.weight.fill_(3.0)
    trainer.add_event_handler(WeightEvents.GRADIENTS_READY, lambda: seen.append(trainer.model.weight.grad.item()))
    trainer.run(batches(4), max_epochs=1)
    loss_gradient = 2 * 3.0  # of the mean of (w·1 − 0)²
    assert seen == pytest.approx([loss_gradient + 2 * strength * 3.0 for strength in (0.25, 0.5, 0.75, 1.0)])


@pytest.mark.parametrize("schedule", [linear(1.0, -1.0, over=2), piecewise({0: 1.0, 5: -1.0, 9: 2.0})], ids=repr)
def test_a_schedule_that_leads_to_a_refused_value_is_refused_before_the_run(schedule):
    with pytest.raises(ConfigurationError, match="strength must be at least 0"):
        L2(schedule)


def falls_below_zero(progress):
    return 1.0 - progress.update


def test_a_refused_value_of_a_users_function_stops_the_run_where_it_is_taken():
    trainer = make_trainer(L2(function(falls_below_zero)))
    with pytest.raises(ConfigurationError, match="strength must be at least 0") as caught:
        trainer.run(batches(4), max_epochs=1)
    assert "update 2" in "\n".join(caught.value.__notes__)


def test_a_schedule_inside_a_list_is_resolved_or_refused():
    with contextlib.suppress(ConfigurationError):
        trainer = make_trainer(FillFromPair((0.0, linear(0.0, 1.0, over=2))))
        trainer.run(batches(1), max_epochs=1)
        assert trainer.model.weight.item() == 0.5


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: linear(0.1, "x"), "linear: 'x' is no number"),
        (lambda: cosine(None, 0.1), "cosine: None is no number"),
        (lambda: linear(True, 0.1), "linear: True is no number"),
        (lambda: exponential(10**400, 1), r"exponential: a magnitude is beyond 1.8e\+308: give a smaller one"),
        (lambda: piecewise({0: 0.1, 5: -(10**400)}), r"piecewise: a magnitude is beyond 1.8e\+308: give a smaller one"),
        (lambda: piecewise({0: "a"}), "piecewise: 'a' is no number"),
        (lambda: piecewise(((0, 0.1),)), r"piecewise takes bounds and values, .*, not \(\(0, 0.1\),\)"),
    ],
)
def test_what_is_no_number_is_refused_where_a_schedule_is_made(attempt, message):
    with pytest.raises(ConfigurationError, match=message):
        attempt()


def test_numbers_of_numpy_are_numbers():
    assert linear(np.float32(1.0), np.int64(0), over=4)(Progress(update=2)) == 0.5
