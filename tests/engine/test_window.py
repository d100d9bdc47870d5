"""The accumulation window: its gradient, its end, and several optimizers side by side."""

from collections import Counter

import pytest
import torch
from ignite.engine import Events
from torch import nn
from weightsmith import Trainer, WeightEvents
from weightsmith_plugins import L2

PER_UPDATE = [
    WeightEvents.GRADIENTS_COMPUTED,
    WeightEvents.GRADIENTS_READY,
    WeightEvents.STEP_COMPLETED,
    WeightEvents.WEIGHTS_EDITED,
    WeightEvents.UPDATE_COMPLETED,
]
ENDS = [Events.TERMINATE_SINGLE_EPOCH, Events.EPOCH_COMPLETED, Events.TERMINATE, Events.COMPLETED]


def batches(count, rows=4):
    generator = torch.Generator().manual_seed(1)
    shapes = [(rows, 3), (rows, 1)]
    return [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(count)]


def make_trainer(accumulate, plugins=(), lr=0.1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return Trainer(model, optimizer, nn.MSELoss(), accumulate=accumulate, plugins=plugins)


def copy_of(model):
    twin = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    twin.load_state_dict(model.state_dict())
    return twin


def full_batch_updates(twin, windows, strength=0.0):
    """The plain loop with each window as one batch, a ridge penalty on the matrices."""
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for window in windows:
        inputs, targets = (torch.cat(column) for column in zip(*window, strict=True))
        optimizer.zero_grad()
        penalty = sum(strength * p.square().sum() for p in twin.parameters() if p.ndim == 2)
        (nn.functional.mse_loss(twin(inputs), targets) + penalty).backward()
        optimizer.step()


@pytest.mark.parametrize("strength", [0.0, 0.1])
@pytest.mark.parametrize(("accumulate", "count"), [(1, 3), (2, 4), (3, 3), (4, 6), (4, 3), (3, 7)])
def test_a_window_is_one_update_with_the_full_batchs_gradient(accumulate, count, strength):
    trainer, data = make_trainer(accumulate, [L2(strength)]), batches(count)
    twin = copy_of(trainer.model)
    trainer.run(data, max_epochs=2)
    epoch = [data[i : i + accumulate] for i in range(0, count, accumulate)]
    full_batch_updates(twin, epoch * 2, strength)
    for trained, wanted in zip(trainer.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(trained, wanted, rtol=1e-5, atol=1e-6)
    assert trainer.state.updates == {"optimizer": 2 * len(epoch)}


def test_within_a_window_only_microbatches_are_announced():
    trainer = make_trainer(3)
    log = []

    def note(engine, name):
        log.append((engine.state.iteration, name, engine.state.update))

    for event in [WeightEvents.MICROBATCH_COMPLETED, *PER_UPDATE]:
        trainer.add_event_handler(event, note, event.name)
    trainer.run(batches(4), max_epochs=1)
    micro, update = "MICROBATCH_COMPLETED", [event.name for event in PER_UPDATE]
    wanted = [(0, "WEIGHTS_EDITED", 0), (1, micro, 1), (2, micro, 1), (3, micro, 1), *((3, name, 1) for name in update)]
    assert log == [*wanted, (4, micro, 2), *((4, name, 2) for name in update)]


def test_the_gradient_is_still_there_at_the_end_of_the_epoch():
    trainer, data = make_trainer(2), batches(3)
    seen = {}

    def before_the_step():
        seen["edited"] = trainer.model[0].weight.grad.clone()

    def at_the_end():
        seen["end"] = trainer.model[0].weight.grad.clone()

    trainer.add_event_handler(WeightEvents.GRADIENTS_READY, before_the_step)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, at_the_end)
    trainer.run(data, max_epochs=1)
    assert seen["end"].abs().sum() > 0
    assert torch.equal(seen["edited"], seen["end"])


HOW = {
    "epoch": ({"max_epochs": 2}, lambda t: None, ["EPOCH_COMPLETED"]),
    "max_iters": ({"max_iters": 5}, lambda t: None, ["TERMINATE", "COMPLETED"]),
    "terminate": ({"max_epochs": 2}, lambda t: t.terminate(), ["TERMINATE", "COMPLETED"]),
    "terminate, skipping": ({"max_epochs": 2}, lambda t: t.terminate(skip_completed=True), ["TERMINATE"]),
    "terminate_epoch": ({"max_epochs": 2}, lambda t: t.terminate_epoch(), ["TERMINATE_SINGLE_EPOCH"]),
    "terminate_epoch, skipping": (
        {"max_epochs": 2},
        lambda t: t.terminate_epoch(skip_epoch_completed=True),
        ["TERMINATE_SINGLE_EPOCH"],
    ),
}


@pytest.mark.parametrize("how", HOW)
def test_an_open_window_ends_with_the_epoch_or_the_run_before_any_user_handler(how):
    """Seven batches by fours: stopped after the fifth, one micro-batch is left, or three at a full epoch's end."""
    arguments, stop, ends = HOW[how]
    torch.manual_seed(0)
    data = batches(7)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    twin = copy_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = Trainer(model, optimizer, nn.MSELoss(), accumulate=4)
    at_the_ends = {}

    def note(*_, name, **__):
        weights = [p.detach().clone() for p in model.parameters()]
        at_the_ends.setdefault(name, (trainer.state.updates["optimizer"], weights))

    for event in ENDS:
        trainer.add_event_handler(event, note, name=event.name)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), stop)
    trainer.attach(L2(0.0))  # plugins attached later stand no later for it
    trainer.run(data, **arguments)
    full_batch_updates(twin, [data[:4], data[4:7] if how == "epoch" else data[4:5]])
    for end in ends:
        count, weights = at_the_ends[end]
        assert count == 2
        for weight, wanted in zip(weights, twin.parameters(), strict=True):
            torch.testing.assert_close(weight, wanted, rtol=1e-5, atol=1e-6)


def test_a_window_that_a_raised_run_left_open_is_forgotten():
    trainer, data = make_trainer(2), batches(4)
    twin = copy_of(trainer.model)
    broken = [True]

    def fail():
        if broken.pop():
            raise ArithmeticError("once")

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), fail)
    with pytest.raises(ArithmeticError, match="once"):
        trainer.run(data, max_epochs=1)
    trainer.run(data, max_epochs=1)
    # Ignite goes on with three iterations, on its data from the first
    full_batch_updates(twin, [data[:2], data[2:3]])
    torch.testing.assert_close(trainer.model[0].weight, twin[0].weight, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- several optimizers


def adversaries():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    return generator, nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def losses(generator, critic, noise, real):
    """Of the critic, through an undetached generator; and of the generator, through the critic."""
    critic_loss = critic(generator(noise)).float().square().mean() + (critic(real).float() - 1).square().mean()
    return critic_loss, lambda: (critic(generator(noise)).float() - 1).square().mean()


def adversarial_data(count):
    noise = torch.Generator().manual_seed(3)
    return [(torch.randn(5, 2, generator=noise), torch.randn(5, 3, generator=noise)) for _ in range(count)]


def adversarial_trainer(accumulate, precision="float32", spoil=(), gain=1.0):
    generator, critic = adversaries()
    optimizers = {
        "generator": torch.optim.SGD(generator.parameters(), lr=0.1),
        "critic": torch.optim.SGD(critic.parameters(), lr=0.2),
    }

    def step(trainer, batch):
        critic_loss, generator_loss = losses(generator, critic, *batch)
        scale = 1e38 if trainer.state.iteration in spoil else gain
        trainer.update(critic_loss * gain, "critic")
        trainer.update(generator_loss() * scale, "generator")

    models = {"generator": generator, "critic": critic}
    return Trainer(models, optimizers, step=step, accumulate=accumulate, precision=precision)


def adversarial_by_hand(data, accumulate):
    generator, critic = adversaries()
    sums = {"critic": None, "generator": None}
    pending = 0

    def gather(name, loss, model):
        found = torch.autograd.grad(loss, list(model.parameters()))
        sums[name] = found if sums[name] is None else [a + b for a, b in zip(sums[name], found, strict=True)]

    def descend(name, model, lr):
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), sums[name], strict=True):
                parameter -= lr * gradient / pending
        sums[name] = None

    for number, batch in enumerate(data, start=1):
        pending += 1
        ends = pending == accumulate
        critic_loss, generator_loss = losses(generator, critic, *batch)
        gather("critic", critic_loss, critic)
        if ends:
            descend("critic", critic, 0.2)
        gather("generator", generator_loss(), generator)
        if ends:
            descend("generator", generator, 0.1)
            pending = 0
        elif number == len(data):
            descend("critic", critic, 0.2)
            descend("generator", generator, 0.1)
    return [*generator.parameters(), *critic.parameters()]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_each_backward_reaches_only_its_own_optimizers_weights(accumulate):
    data = adversarial_data(6)
    trainer = adversarial_trainer(accumulate)
    trainer.run(data, max_epochs=1)
    wanted = adversarial_by_hand(data, accumulate)
    for weight, by_hand in zip(trainer.weights().values(), wanted, strict=True):
        torch.testing.assert_close(weight, by_hand, rtol=1e-5, atol=1e-6)


def test_one_update_leaves_the_other_optimizers_gradients_bit_for_bit_alone():
    trainer = adversarial_trainer(4)
    seen = []

    def compare(engine):
        other = "critic" if engine.state.optimizer == "generator" else "generator"
        seen.append((engine.state.optimizer, [p.grad for p in engine.models[other].parameters()]))

    trainer.add_event_handler(WeightEvents.MICROBATCH_COMPLETED, compare)
    trainer.run(adversarial_data(1), max_epochs=1)
    assert seen[0][0] == "critic"
    assert all(gradient is None for gradient in seen[0][1])


def test_counts_of_two_optimizers_with_accumulation_and_one_skipped_float16_update():
    trainer = adversarial_trainer(4, precision="float16", spoil=(2,), gain=1e-3)  # in the first window
    counts = Counter()
    numbers = []
    for event in [WeightEvents.INITIALIZING, WeightEvents.MICROBATCH_COMPLETED, *PER_UPDATE]:
        trainer.add_event_handler(event, lambda t, name: counts.update([(t.state.optimizer, name)]), event.name)
    trainer.add_event_handler(
        WeightEvents.UPDATE_COMPLETED, lambda t: numbers.append((t.state.optimizer, t.state.update, t.state.epoch))
    )
    trainer.run(adversarial_data(6), max_epochs=2)
    wanted = Counter({(None, "INITIALIZING"): 1, (None, "WEIGHTS_EDITED"): 1})
    for name, updates in {"critic": 4, "generator": 3}.items():
        wanted[name, "MICROBATCH_COMPLETED"] = 12
        wanted.update({(name, event.name): updates for event in PER_UPDATE})
    assert counts == wanted
    assert trainer.state.updates == {"generator": 3, "critic": 4}
    assert [n for name, n, _ in numbers if name == "critic"] == [1, 2, 3, 4]
    assert [(n, epoch) for name, n, epoch in numbers if name == "generator"] == [(1, 1), (2, 2), (3, 2)]


@pytest.mark.parametrize("end", [Events.EPOCH_COMPLETED, Events.COMPLETED], ids=str)
def test_the_event_in_progress_stays_the_end_that_closed_a_window(end):
    trainer = make_trainer(accumulate=2)
    seen = []
    trainer.add_event_handler(end, lambda t: seen.append((t.last_event_name, dict(t.state.updates))))
    trainer.run(batches(3), max_epochs=1)
    assert seen == [(end, {"optimizer": 2})]
