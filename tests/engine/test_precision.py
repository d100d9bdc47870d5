"""bfloat16 and float16 against the plain loops of torch's documentation."""

from collections import Counter

import pytest
import torch
from ignite.engine import Events
from torch import nn
from weightsmith import GradientEditor, Trainer, WeightEvents
from weightsmith_plugins import L2

FROM_GRADIENTS_ON = [
    WeightEvents.GRADIENTS_COMPUTED,
    WeightEvents.GRADIENTS_READY,
    WeightEvents.STEP_COMPLETED,
    WeightEvents.WEIGHTS_EDITED,
    WeightEvents.UPDATE_COMPLETED,
]
SPOILT = 1e38
"""A factor that makes a loss whose scaled gradient is infinite."""


class Watch(GradientEditor):
    """Raises where a gradient is not finite."""

    def edit(self, gradient, weight, site):
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()
        return gradient


def batches(count):
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 3), (4, 1)]
    return [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(count)]


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def spoiling_step(spoilt):
    def step(trainer, batch):
        factor = SPOILT if trainer.state.iteration in spoilt else 1.0
        return trainer.update(nn.functional.mse_loss(trainer.model(batch[0]), batch[1]) * factor)

    return step


def make_trainer(precision, plugins=(), spoilt=(), accumulate=1):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = spoiling_step(spoilt)
    return Trainer(model, optimizer, step=step, precision=precision, plugins=plugins, accumulate=accumulate)


def by_hand(data, dtype, spoilt=(), accumulate=1, strength=0.0):
    """The loop of torch's page on automatic mixed precision, with a ridge penalty on the unscaled gradient."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    steps = 0
    for number, (inputs, targets) in enumerate(data, start=1):
        with torch.autocast("cpu", dtype):
            loss = nn.functional.mse_loss(model(inputs), targets) * (SPOILT if number in spoilt else 1.0)
        scaler.scale(loss).backward()
        if number % accumulate == 0 or number == len(data):
            gathered = number % accumulate or accumulate
            scaler.unscale_(optimizer)
            finite = all(p.grad.isfinite().all() for p in model.parameters())
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.grad /= gathered
                    if parameter.ndim == 2:
                        parameter.grad += 2 * strength * parameter
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            steps += finite
    return model, steps


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("strength", [0.0, 0.1])
@pytest.mark.parametrize("spoilt", [(), (1,), (3,), (2, 6), (5, 6)], ids=str)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_is_torchs_own_loop(precision, spoilt, strength, accumulate):
    if precision == "bfloat16":
        spoilt = ()
    data = batches(6)
    trainer = make_trainer(precision, [L2(strength), Watch()], spoilt, accumulate)
    trainer.run(data, max_epochs=1)
    model, steps = by_hand(data, getattr(torch, precision), spoilt, accumulate, strength)
    assert trainer.state.updates == {"optimizer": steps}
    for trained, wanted in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert trained.dtype == torch.float32
        torch.testing.assert_close(trained, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_the_model_computes_in_this_precision_and_the_update_in_float32(precision, dtype):
    trainer = make_trainer(precision)
    seen = {"model": set(), "handlers": set()}
    trainer.model.register_forward_hook(lambda module, inputs, output: seen["model"].add(output.dtype))
    for event in [WeightEvents.MICROBATCH_COMPLETED, *FROM_GRADIENTS_ON]:
        trainer.add_event_handler(event, lambda t: seen["handlers"].add((t.model[0].weight @ torch.ones(3)).dtype))
    trainer.run(batches(2), max_epochs=1)
    assert seen == {"model": {dtype}, "handlers": {torch.float32}}


def test_a_skipped_update_fires_nothing_from_the_gradients_on_and_reuses_its_number():
    trainer = make_trainer("float16", spoilt=(2, 5))
    counts = Counter()
    numbers = {"MICROBATCH_COMPLETED": [], "UPDATE_COMPLETED": [], "ITERATION_COMPLETED": []}
    for event in [WeightEvents.MICROBATCH_COMPLETED, *FROM_GRADIENTS_ON]:
        trainer.add_event_handler(event, lambda t, name: counts.update([name]), event.name)
    for event in [WeightEvents.MICROBATCH_COMPLETED, WeightEvents.UPDATE_COMPLETED, Events.ITERATION_COMPLETED]:
        trainer.add_event_handler(event, lambda t, name: numbers[name].append(t.state.update), event.name)
    trainer.run(batches(6), max_epochs=1)
    start = {"WEIGHTS_EDITED": 1}
    assert counts == {event.name: 4 + start.get(event.name, 0) for event in FROM_GRADIENTS_ON} | {
        "MICROBATCH_COMPLETED": 6
    }
    assert numbers["MICROBATCH_COMPLETED"] == [1, 2, 2, 3, 4, 4]
    assert numbers["UPDATE_COMPLETED"] == [1, 2, 3, 4]
    assert numbers["ITERATION_COMPLETED"] == [1, 1, 2, 3, 3, 4]
    assert trainer.state.updates == {"optimizer": 4}


def test_a_skipped_update_leaves_weights_and_momentum_alone():
    trainer = make_trainer("float16", [L2(0.5)], spoilt=(2,))
    snapshots = []

    def snapshot(engine):
        momentum = [state["momentum_buffer"].clone() for state in engine.optimizers["optimizer"].state.values()]
        snapshots.append([*(p.detach().clone() for p in engine.model.parameters()), *momentum])

    trainer.add_event_handler(Events.ITERATION_COMPLETED, snapshot)
    trainer.run(batches(3), max_epochs=1)
    first, second, third = snapshots
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(second, third, strict=True))


def test_every_optimizer_has_a_scaler_of_its_own():
    """One optimizer's infinities neither skip the other's updates nor change what it learns."""

    def run(spoilt):
        torch.manual_seed(0)
        models = {"one": nn.Linear(3, 1), "two": nn.Linear(3, 1)}
        optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.1) for name, model in models.items()}

        def step(trainer, batch):
            for name, model in models.items():
                factor = SPOILT if name == "one" and trainer.state.iteration in spoilt else 0.01
                trainer.update(nn.functional.mse_loss(model(batch[0]), batch[1]) * factor, name)

        trainer = Trainer(models, optimizers, step=step, precision="float16")
        trainer.run(batches(5), max_epochs=1)
        return trainer

    clean, spoilt = run(()), run((1, 3, 4))
    assert clean.state.updates == {"one": 5, "two": 5}
    assert spoilt.state.updates == {"one": 2, "two": 5}
    assert torch.equal(clean.models["two"].weight, spoilt.models["two"].weight)


@pytest.mark.parametrize("event", FROM_GRADIENTS_ON, ids=lambda event: event.name)
def test_a_trainer_whose_float16_run_raised_within_an_update_runs_on(event):
    trainer = make_trainer("float16")
    broken = [True]

    def fail_once(engine):
        if engine.state.optimizer and engine.state.iteration == 2 and broken:
            broken.clear()
            raise ArithmeticError("once")

    trainer.add_event_handler(event, fail_once)
    with pytest.raises(ArithmeticError, match="once"):
        trainer.run(batches(4), max_epochs=1)
    done = trainer.state.updates["optimizer"]
    trainer.run(batches(4), max_epochs=1)
    assert trainer.state.iteration == 4
    assert trainer.state.updates == {"optimizer": done + 2}
