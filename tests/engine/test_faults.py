"""What goes wrong says what, where and in whom, and reaches the caller."""

import pytest
import torch
from ignite.engine import Events
from torch import nn
from weightsmith import (
    Average,
    ConfigurationError,
    Constraint,
    GradientEditor,
    Initializer,
    Parametrization,
    Penalty,
    Plugin,
    Probe,
    Trainer,
    WeightEditor,
    WeightEvents,
    linear,
)


class BrokenError(Exception):
    """Raised by the plugins of this file only."""


class BrokenStart(Initializer):
    def draw(self, weight, site):
        raise BrokenError("broken")


class BrokenPenalty(Penalty):
    def cost(self, weight, site):
        return weight.sum()

    def gradient(self, weight, site):
        raise BrokenError("broken")

    def proximal(self, weight, step, site):
        raise BrokenError("broken")


class BrokenCost(Penalty):
    def cost(self, weight, site):
        raise BrokenError("broken")

    def gradient(self, weight, site):
        return torch.zeros_like(weight)


class BrokenGradientEditor(GradientEditor):
    def edit(self, gradient, weight, site):
        raise BrokenError("broken")


class BrokenWeightEditor(WeightEditor):
    def edit(self, weight, gradient, site):
        raise BrokenError("broken")


class BrokenConstraint(Constraint):
    def project(self, weight, site):
        raise BrokenError("broken")


class BrokenAverage(Average):
    def average(self, mean, weight, site):
        raise BrokenError("broken")


class BrokenMemory(Average):
    def init(self, weight, site):
        raise BrokenError("broken")

    def average(self, mean, weight, site):
        return mean, {}


class BrokenProbe(Probe):
    def measure(self, weight, site):
        raise BrokenError("broken")


class BrokenForward(Parametrization):
    def forward(self, weight, site):
        if site.epoch:
            raise BrokenError("broken")
        return weight * 1

    def right_inverse(self, weight, site):
        return weight


class BrokenListener(Plugin):
    def subscriptions(self, trainer):
        yield WeightEvents.UPDATE_COMPLETED, self._fail

    def _fail(self):
        raise BrokenError("broken")


class Exhausted(WeightEditor):
    """Leaks the exception that Python's generators use for their own end."""

    def edit(self, weight, gradient, site):
        return next(iter(()))


class Distinct(GradientEditor):
    factor: float = 1.0

    def validate(self):
        if abs(self.factor) < 0.4:
            raise ConfigurationError(f"{self!r}: factor must not be near 0")

    def edit(self, gradient, weight, site):
        return self.factor * gradient


BROKEN = {
    BrokenStart(where="0.weight"): "INITIALIZING",
    BrokenPenalty(where="0.weight"): "GRADIENTS_COMPUTED",
    BrokenPenalty(where="0.weight", mode="decoupled"): "GRADIENTS_READY",
    BrokenPenalty(where="0.weight", mode="proximal"): "STEP_COMPLETED",
    BrokenGradientEditor(where="0.weight"): "GRADIENTS_READY",
    BrokenWeightEditor(where="0.weight"): "STEP_COMPLETED",
    BrokenConstraint(where="0.weight"): "WEIGHTS_EDITED",
    BrokenAverage(where="0.weight"): "UPDATE_COMPLETED",
    BrokenAverage(where="0.weight", at=Events.ITERATION_COMPLETED): "ITERATION_COMPLETED",
    BrokenMemory(where="0.weight"): "UPDATE_COMPLETED",
    BrokenProbe(where="0.weight"): "EPOCH_COMPLETED",
}


def batches(count):
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 3), (4, 2)]
    return [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(count)]


def make_trainer(*plugins, optimizer=torch.optim.SGD, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return Trainer(model, optimizer(model.parameters(), lr=0.1), nn.MSELoss(), plugins=plugins, **options)


def failure(trainer, expected=BrokenError):
    with pytest.raises(expected) as caught:
        trainer.run(batches(2), max_epochs=2)
    return caught.value


@pytest.mark.parametrize(("plugin", "event"), BROKEN.items(), ids=repr)
def test_a_plugins_exception_keeps_its_type_and_names_plugin_weight_and_event(plugin, event):
    error = failure(make_trainer(plugin))
    assert type(error) is BrokenError
    assert str(error) == "broken"
    notes = "\n".join(error.__notes__)
    assert repr(plugin) in notes
    assert "0.weight" in notes
    assert event in notes.replace(repr(plugin), "")


EVERYBODY = [*BROKEN, BrokenListener(), BrokenForward(where="0.weight")]


@pytest.mark.parametrize("plugin", EVERYBODY, ids=repr)
def test_it_reaches_the_caller_whatever_handlers_do_and_they_hear_of_it_once(plugin):
    trainer, heard = make_trainer(plugin), []
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: heard.append(error))
    error = failure(trainer)
    assert len(heard) == 1
    assert heard[0] is error


@pytest.mark.parametrize("plugin", [BrokenListener(), BrokenForward(where="0.weight")], ids=repr)
def test_an_exception_outside_the_kinds_own_handlers_names_its_plugin_too(plugin):
    assert repr(plugin) in "\n".join(getattr(failure(make_trainer(plugin)), "__notes__", []))


def test_an_exception_in_a_cost_within_a_closure_reaches_the_caller_and_names_plugin_and_weight():
    plugin = BrokenCost(where="0.weight")
    trainer, heard = make_trainer(plugin, optimizer=torch.optim.LBFGS), []
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: heard.append(error))
    error = failure(trainer)
    assert heard == [error]
    notes = "\n".join(getattr(error, "__notes__", []))
    assert repr(plugin) in notes
    assert "0.weight" in notes.replace(repr(plugin), "")


def test_a_schedule_that_leaves_the_allowed_range_reaches_the_caller_too():
    trainer, heard = make_trainer(Distinct(linear(1.0, -1.0, over=4))), []
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: heard.append(error))
    error = failure(trainer, ConfigurationError)
    assert heard == [error]
    assert "Distinct" in str(error)


def test_the_exception_that_ends_generators_ends_no_run_silently():
    error = failure(make_trainer(Exhausted()), (RuntimeError, StopIteration))  # Python turns one into the other
    assert "Exhausted()" in "\n".join(error.__notes__)


def test_the_same_exception_object_is_announced_in_every_run():
    trainer, heard = make_trainer(), []
    error = BrokenError("one object")

    class Same(WeightEditor):
        def edit(self, weight, gradient, site):
            raise error

    trainer.attach(Same(where="0.weight"))
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: heard.append(error))
    for _ in range(2):
        assert failure(trainer) is error
    assert len(heard) == 2


# ---------------------------------------------------------------- elsewhere: as Ignite


@pytest.mark.parametrize("event", [WeightEvents.GRADIENTS_READY, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED])
@pytest.mark.parametrize("handled", [True, False])
def test_a_user_handlers_exception_follows_ignite(event, handled):
    trainer, heard = make_trainer(), []

    def fail():
        raise BrokenError("the user's")

    trainer.add_event_handler(event, fail)
    if not handled:
        assert str(failure(trainer)) == "the user's"
        return
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: heard.append(str(error)))
    trainer.run(batches(2), max_epochs=1)
    assert set(heard) == {"the user's"}


def test_the_steps_own_exception_follows_ignite():
    def step(trainer, batch):
        raise BrokenError("the step's")

    model = nn.Linear(3, 2)
    trainer, heard = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), step=step), []
    assert str(failure(trainer)) == "the step's"
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: heard.append(str(error)))
    trainer.run(batches(2), max_epochs=1)
    assert set(heard) == {"the step's"}
