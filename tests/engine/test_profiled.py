"""Torch's profiler names what each plugin does, while it records."""

import pytest
import torch
from ignite.engine import Events
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from weightsmith import Constraint, Trainer, WeightEvents
from weightsmith_plugins import L2, L2SP, WeightHistograms

BATCHES = [(torch.ones(2, 3), torch.ones(2, 1))] * 4


class Bounded(Constraint):
    """Between −0.5 and 0.5."""

    def project(self, weight, site):
        return weight.clamp(-0.5, 0.5)


def make_trainer(*plugins):
    model = nn.Linear(3, 1)
    return Trainer(model, torch.optim.SGD(model.parameters(), lr=0.01), nn.MSELoss(), plugins=plugins)


def listed(profiler):
    return [event.name for event in profiler.events() if event.is_user_annotation and "Optimizer" not in event.name]


@pytest.mark.parametrize("is_announced", [False, True])
def test_every_act_of_a_plugin_is_listed_under_its_event_and_name(is_announced):
    trainer = make_trainer(L2(0.1), L2(0.2), Bounded(every=2), WeightHistograms())
    if is_announced:
        trainer.add_event_handler(WeightEvents.PLUGIN_STARTED, lambda: None)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        trainer.run(BATCHES, max_epochs=1)
    update = ["GRADIENTS_COMPUTED#L2", "GRADIENTS_COMPUTED#L2.1"]
    projected = ["WEIGHTS_EDITED#Bounded"]
    assert listed(profiler) == [
        *projected,
        *2 * (2 * update + projected),
        "EPOCH_COMPLETED#WeightHistograms",
    ]


def test_what_torch_does_for_a_plugin_is_inside_its_range():
    trainer = make_trainer(Bounded())
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        trainer.run(BATCHES, max_epochs=1)
    clamps = [event for event in profiler.events() if event.name == "aten::clamp"]
    assert {event.cpu_parent.name for event in clamps} == {"WEIGHTS_EDITED#Bounded"}


def test_what_watchers_do_is_outside_a_plugins_range():
    trainer = make_trainer(Bounded())
    for event in (WeightEvents.PLUGIN_STARTED, WeightEvents.PLUGIN_COMPLETED):
        trainer.add_event_handler(event, lambda: torch.ones(2).erfinv())
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        trainer.run(BATCHES, max_epochs=1)
    watched = [event for event in profiler.events() if event.name == "aten::erfinv"]
    assert len(watched) == 2 * len(listed(profiler)) > 0
    assert {event.cpu_parent for event in watched} == {None}


@pytest.mark.parametrize("is_announced", [False, True])
def test_nothing_is_recorded_where_no_profiler_runs(is_announced):
    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(str(function))
            return function(*args, **(kwargs or {}))

    calls, trainer = [], make_trainer(Bounded())
    if is_announced:
        trainer.add_event_handler(WeightEvents.PLUGIN_STARTED, lambda: None)
    with Calls():
        trainer.run(BATCHES, max_epochs=1)
    assert calls
    assert not [call for call in calls if "record_function" in call]


def test_beginning_to_remember_is_no_act():
    trainer = make_trainer(L2SP(0.1))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        trainer.run(BATCHES, max_epochs=1)
    assert listed(profiler) == 4 * ["GRADIENTS_COMPUTED#L2SP"]


def test_the_names_come_and_go_with_the_profiler():
    trainer, profiler = make_trainer(Bounded()), profile(activities=[ProfilerActivity.CPU])
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: profiler.start())
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: profiler.stop())
    trainer.run(BATCHES, max_epochs=1)
    assert listed(profiler) == 2 * ["WEIGHTS_EDITED#Bounded"]


def test_a_plugin_that_fails_while_it_is_recorded_is_blamed():
    class Fails(Bounded):
        def project(self, weight, site):
            if site.update == 2:
                raise ValueError("too small")
            return weight

    trainer = make_trainer(Fails())
    with profile(activities=[ProfilerActivity.CPU]), pytest.raises(ValueError, match="too small") as failure:
        trainer.run(BATCHES, max_epochs=1)
    assert any("Fails" in note and "update 2" in note for note in failure.value.__notes__)
