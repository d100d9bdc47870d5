"""The loop: which events fire, in which order, how often, and which number filters and handlers see."""

import pytest
import torch
from ignite.engine import Events
from torch import nn
from weightsmith import Trainer, WeightEvents

UPDATE = [
    "MICROBATCH_COMPLETED",
    "GRADIENTS_COMPUTED",
    "GRADIENTS_READY",
    "STEP_COMPLETED",
    "WEIGHTS_EDITED",
    "UPDATE_COMPLETED",
]
PER_UPDATE = [WeightEvents[name] for name in UPDATE]
AROUND = [
    Events.STARTED,
    Events.EPOCH_STARTED,
    Events.ITERATION_STARTED,
    Events.ITERATION_COMPLETED,
    Events.EPOCH_COMPLETED,
    Events.COMPLETED,
]


def batches(count, rows=4):
    generator = torch.Generator().manual_seed(1)
    shapes = [(rows, 3), (rows, 2)]
    return [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(count)]


def make_trainer(plugins=(), **settings):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), plugins=plugins, **settings)


def two_optimizers(order="abb"):
    """A trainer whose every step updates the optimizers named by the letters of ``order``."""
    torch.manual_seed(0)
    models = {"one": nn.Linear(3, 2), "two": nn.Linear(3, 2)}
    optimizers = {
        "a": torch.optim.SGD(models["one"].parameters(), lr=0.1),
        "b": torch.optim.SGD(models["two"].parameters(), lr=0.1),
    }

    def step(trainer, batch):
        for name in order:
            model = trainer.models["one" if name == "a" else "two"]
            trainer.update(nn.functional.mse_loss(model(batch[0]), batch[1]), name)

    return Trainer(models, optimizers, step=step)


def record(trainer, events, seen=lambda trainer: None):
    """Every firing of ``events``, in order, with what ``seen`` makes of the trainer."""
    log = []
    for event in events:
        trainer.add_event_handler(event, lambda engine, name: log.append((name, seen(engine))), event.name)
    return log


def names(log):
    return [name for name, _ in log]


def test_the_events_of_a_run_fire_in_the_order_of_the_drawing():
    trainer = make_trainer()
    log = record(trainer, [*AROUND, *WeightEvents])
    trainer.run(batches(2), max_epochs=2)
    iteration = ["ITERATION_STARTED", *UPDATE, "ITERATION_COMPLETED"]
    epoch = ["EPOCH_STARTED", *iteration, *iteration, "EPOCH_COMPLETED"]
    assert names(log) == ["INITIALIZING", "WEIGHTS_EDITED", "STARTED", *epoch, *epoch, "COMPLETED"]


def test_training_without_plugins_is_the_plain_loop_bit_for_bit():
    trainer, data = make_trainer(), batches(3)
    twin = nn.Linear(3, 2)
    twin.load_state_dict(trainer.model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    outputs = record(trainer, [Events.ITERATION_COMPLETED], lambda engine: engine.state.output)
    trainer.run(data, max_epochs=2)
    losses = []
    for inputs, targets in data * 2:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(twin(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert torch.equal(trainer.model.weight, twin.weight)
    assert torch.equal(trainer.model.bias, twin.bias)
    assert torch.equal(torch.stack([output for _, output in outputs]), torch.stack(losses))
    assert not any(output.requires_grad for _, output in outputs)
    assert torch.equal(trainer.state.losses["optimizer"], losses[-1])


def test_the_weight_moves_between_gradients_ready_and_step_completed_only():
    trainer = make_trainer()
    log = record(trainer, PER_UPDATE, lambda engine: engine.model.weight.detach().clone())
    trainer.run(batches(1), max_epochs=1)
    start, *update = (weight for _, weight in log)
    moved = [not torch.equal(start, weight) for weight in update]
    assert dict(zip(UPDATE, moved, strict=True)) == {
        name: name in ("STEP_COMPLETED", "WEIGHTS_EDITED", "UPDATE_COMPLETED") for name in UPDATE
    }


def test_state_update_is_the_update_in_progress_and_updates_those_completed():
    trainer = make_trainer()
    log = record(trainer, PER_UPDATE, lambda engine: (engine.state.update, engine.state.updates["optimizer"]))
    ends = record(trainer, [Events.ITERATION_COMPLETED], lambda engine: (engine.state.update, engine.state.optimizer))
    assert trainer.state.update == 0
    trainer.run(batches(3), max_epochs=1)
    updates = [entry for entry in log if entry[0] in UPDATE][1:]  # the first is WEIGHTS_EDITED at the start
    assert [number for _, (number, _) in updates] == [n for n in (1, 2, 3) for _ in UPDATE]
    assert [done for name, (_, done) in updates if name == "GRADIENTS_READY"] == [0, 1, 2]
    assert [done for name, (_, done) in updates if name == "UPDATE_COMPLETED"] == [1, 2, 3]
    assert [entry for _, entry in ends] == [(1, None), (2, None), (3, None)]
    assert trainer.state.updates == {"optimizer": 3}


def test_two_optimizers_count_their_own_updates():
    trainer = two_optimizers("abb")
    log = record(trainer, [WeightEvents.UPDATE_COMPLETED], lambda t: (t.state.optimizer, t.state.update))
    trainer.run(batches(2), max_epochs=1)
    assert [entry for _, entry in log] == [("a", 1), ("b", 1), ("b", 2), ("a", 2), ("b", 3), ("b", 4)]
    assert trainer.state.updates == {"a": 2, "b": 4}


FILTERS = {
    "every": ({"every": 2}, lambda n: n % 2 == 0),
    "once": ({"once": 3}, lambda n: n == 3),
    "once_of_several": ({"once": [2, 5]}, lambda n: n in (2, 5)),
    "before": ({"before": 3}, lambda n: 0 < n < 3),  # Ignite's `after` is 0 where it is not given
    "after": ({"after": 3}, lambda n: n > 3),
    "between": ({"after": 1, "before": 4}, lambda n: 1 < n < 4),
    "function": ({"event_filter": lambda engine, n: n in (1, 4)}, lambda n: n in (1, 4)),
}


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("event", PER_UPDATE, ids=UPDATE)
def test_ignites_filters_see_the_update_of_the_optimizer_in_progress(event, kind):
    arguments, passes = FILTERS[kind]
    trainer = two_optimizers("abb")
    log = record(trainer, [event(**arguments)], lambda t: (t.state.optimizer, t.state.update))
    trainer.run(batches(3), max_epochs=1)
    fired = [entry for _, entry in log]
    start = [(None, 0)] if event == WeightEvents.WEIGHTS_EDITED and passes(0) else []
    updates = [("a", 1), ("b", 1), ("b", 2), ("a", 2), ("b", 3), ("b", 4), ("a", 3), ("b", 5), ("b", 6)]
    assert fired == start + [entry for entry in updates if passes(entry[1])]


@pytest.mark.parametrize("kind", FILTERS)
def test_ignites_filters_at_initializing_see_zero(kind):
    arguments, passes = FILTERS[kind]
    trainer = make_trainer()
    log = record(trainer, [WeightEvents.INITIALIZING(**arguments)])
    trainer.run(batches(1), max_epochs=1)
    assert len(log) == passes(0)


@pytest.mark.parametrize("kind", FILTERS)
def test_ignites_filters_at_measured_see_the_update(kind):
    arguments, passes = FILTERS[kind]
    trainer = make_trainer()
    log = record(trainer, [WeightEvents.MEASURED(**arguments)], lambda t: t.state.measurements.values["number"])
    trainer.add_event_handler(
        WeightEvents.UPDATE_COMPLETED, lambda t: t.publish({"number": t.state.update}, step=t.state.update)
    )
    trainer.run(batches(6), max_epochs=1)
    assert [entry for _, entry in log] == [n for n in range(1, 7) if passes(n)]
