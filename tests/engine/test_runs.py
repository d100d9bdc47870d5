"""One run after another: what starts once, what goes on, what a failed run leaves, and every way to end."""

from collections import Counter

import pytest
import torch
from ignite.engine import Events
from torch import nn
from weightsmith import Trainer, WeightEvents
from weightsmith_plugins import Constant, MaxNorm


def batches(count, rows=4):
    generator = torch.Generator().manual_seed(1)
    shapes = [(rows, 3), (rows, 2)]
    return [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(count)]


def make_trainer(plugins=(), **settings):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), plugins=plugins, **settings)


def record(trainer, events, seen=lambda trainer: None):
    """Every firing of ``events``, in order, with what ``seen`` makes of the trainer."""
    log = []
    for event in events:
        trainer.add_event_handler(event, lambda engine, name: log.append((name, seen(engine))), event.name)
    return log


def names(log):
    return [name for name, _ in log]


def test_initializing_is_once_in_a_trainers_life_and_weights_edited_at_every_start():
    trainer = make_trainer([Constant(2.0)])
    log = record(trainer, [WeightEvents.INITIALIZING, WeightEvents.WEIGHTS_EDITED], lambda t: t.state.update)
    weights = record(trainer, [Events.STARTED], lambda t: t.model.weight.detach().clone())
    trainer.run(batches(2), max_epochs=1)
    trained = trainer.model.weight.detach().clone()
    trainer.run(batches(2), max_epochs=1)
    edited = "WEIGHTS_EDITED"
    assert log == [("INITIALIZING", 0), (edited, 0), (edited, 1), (edited, 2), (edited, 2), (edited, 3), (edited, 4)]
    assert torch.equal(weights[0][1], torch.full((2, 3), 2.0))
    assert torch.equal(weights[1][1], trained)
    assert trainer.state.updates == {"optimizer": 4}


def test_a_second_run_goes_on_as_one_plain_loop():
    trainer, data = make_trainer(), batches(2)
    twin = nn.Linear(3, 2)
    twin.load_state_dict(trainer.model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    trainer.run(data, max_epochs=2)
    trainer.run(data, max_epochs=2)
    for inputs, targets in data * 4:
        optimizer.zero_grad()
        nn.functional.mse_loss(twin(inputs), targets).backward()
        optimizer.step()
    assert torch.equal(trainer.model.weight, twin.weight)


def test_step_zero_is_feasible_for_every_handler_of_the_start():
    trainer = make_trainer()
    early = record(trainer, [Events.STARTED], lambda t: t.model.weight.norm(dim=1).detach())
    trainer.attach(MaxNorm(0.1))
    trainer.attach(Constant(5.0))
    trainer.run(batches(1), max_epochs=1)
    torch.testing.assert_close(early[0][1], torch.full((2,), 0.1))


@pytest.mark.parametrize("failing", [1, 2, 5, 6, 8], ids=lambda iteration: f"iteration{iteration}")
@pytest.mark.parametrize("where", ["step", "handler", "plugin event"])
def test_a_trainer_whose_run_raised_runs_on(failing, where):
    trainer, data = make_trainer(), batches(3)
    moment = {
        "step": Events.ITERATION_STARTED,
        "handler": Events.ITERATION_COMPLETED,
        "plugin event": WeightEvents.GRADIENTS_READY,
    }[where]
    broken = [True]

    def fail(engine):
        if broken[0] and engine.state.iteration == failing:
            raise ArithmeticError("once")

    trainer.add_event_handler(moment, fail)
    with pytest.raises(ArithmeticError, match="once"):
        trainer.run(data, max_epochs=3)
    done = failing - (where != "handler")
    assert trainer.state.updates == {"optimizer": done}
    broken[0] = False
    numbers = record(trainer, [WeightEvents.UPDATE_COMPLETED], lambda t: t.state.update)
    epochs = record(trainer, [Events.EPOCH_STARTED], lambda t: t.state.epoch)
    trainer.run(data, max_epochs=3)
    assert trainer.state.iteration == 9
    assert [number for _, number in numbers] == list(range(done + 1, done + 1 + 9 - failing))
    assert [epoch for _, epoch in epochs] == list(range(failing // 3 + 1, 4))


def test_after_a_raised_update_none_is_in_progress_and_the_number_is_that_of_the_last_one():
    trainer = make_trainer()

    def fail():
        raise ArithmeticError("now")

    trainer.add_event_handler(WeightEvents.GRADIENTS_READY(once=3), fail)
    with pytest.raises(ArithmeticError, match="now"):
        trainer.run(batches(3), max_epochs=2)
    assert trainer.state.optimizer is None
    assert trainer.state.update == trainer.state.updates["optimizer"] == 2


def test_a_trainer_whose_start_raised_initializes_when_it_runs_again():
    trainer = make_trainer()
    calls = []

    def fail_once():
        calls.append("initializing")
        if len(calls) == 1:
            raise ArithmeticError("once")

    trainer.add_event_handler(WeightEvents.INITIALIZING, fail_once)
    with pytest.raises(ArithmeticError, match="once"):
        trainer.run(batches(1), max_epochs=1)
    trainer.run(batches(1), max_epochs=1)
    trainer.run(batches(1), max_epochs=1)
    assert len(calls) == 2
    assert trainer.state.updates == {"optimizer": 2}


ENDS = {
    "max_iters": ({"max_iters": 5}, None, Counter(ITERATION_COMPLETED=5, EPOCH_COMPLETED=1, COMPLETED=1)),
    "terminate": ({"max_epochs": 3}, "terminate", Counter(ITERATION_COMPLETED=2, COMPLETED=1)),
    "terminate_epoch": (
        {"max_epochs": 3},
        "terminate_epoch",
        Counter(ITERATION_COMPLETED=8, EPOCH_COMPLETED=3, COMPLETED=1),
    ),
    "skip_epoch_completed": (
        {"max_epochs": 3},
        "skip",
        Counter(ITERATION_COMPLETED=8, EPOCH_COMPLETED=2, COMPLETED=1),
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_every_end_of_a_run_has_one_update_for_each_of_its_iterations(end):
    arguments, how, wanted = ENDS[end]
    trainer = make_trainer()
    stop = {
        None: lambda: None,
        "terminate": lambda: trainer.terminate(),
        "terminate_epoch": lambda: trainer.terminate_epoch(),
        "skip": lambda: trainer.terminate_epoch(skip_epoch_completed=True),
    }[how]
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), stop)
    ends = [Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED, Events.COMPLETED]
    log = record(trainer, [*ends, WeightEvents.UPDATE_COMPLETED])
    trainer.run(batches(3), **arguments)
    assert Counter(names(log)) == wanted + Counter(UPDATE_COMPLETED=wanted["ITERATION_COMPLETED"])
