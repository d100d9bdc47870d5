"""A run's state: saved, loaded, and gone on with as if nothing had happened."""

import copy
import io

import pytest
import torch
from ignite.engine import Engine, Events, State
from torch import nn
from weightsmith import ConfigurationError, GradientEditor, Trainer, TrainingState, WeightEvents, linear
from weightsmith_plugins import EMA, L2, Constant, Decay, KaimingNormal, MaxNorm, NonNegative, Perturb


class HeavyBall(GradientEditor):
    """Remembers a running sum of gradients."""

    rate: float = 0.5

    def init(self, weight, site):
        return {"sum": torch.zeros_like(weight), "count": torch.zeros((), dtype=torch.int64)}

    def edit(self, gradient, weight, site):
        total = self.rate * site.state["sum"] + gradient
        return total, {"sum": total, "count": site.state["count"] + 1}


PLUGINS = [
    KaimingNormal(),
    L2(linear(0.0, 0.2, over=8)),
    HeavyBall(),
    HeavyBall(0.25, where="0"),
    Decay(0.1, every=3, after=1),
    Perturb(0.01),
    MaxNorm(0.8),
    EMA(0.5),
    EMA(0.9, every=2),
]


def batches(count):
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 3), (4, 1)]
    return [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(count)]


def make_trainer(plugins=PLUGINS, seed=0, **options):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Trainer(model, optimizer, nn.MSELoss(), plugins=plugins, seed=seed, **options)


def parts(trainer):
    return {"trainer": trainer, "model": trainer.model, "optimizer": trainer.optimizers["optimizer"]}


def saved(trainer):
    """Through a file, read back by the loader that trusts nothing but tensors and plain values."""
    buffer = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in parts(trainer).items()}, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def restored(state, plugins=PLUGINS):
    trainer = make_trainer(plugins)
    for name, part in parts(trainer).items():
        part.load_state_dict(state[name])
    return trainer


def means(trainer, plugin):
    with trainer.averaged(plugin):
        return [weight.detach().clone() for weight in trainer.model.parameters()]


def everything_in(trainer):
    averages = [plugin for plugin in trainer.plugins if isinstance(plugin, EMA)]
    now = [weight.detach().clone() for weight in trainer.model.parameters()]
    return now + [mean for plugin in averages for mean in means(trainer, plugin)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_restored_run_ends_bit_for_bit_where_the_whole_one_does(epoch):
    whole, data = make_trainer(), batches(3)
    states = {}
    whole.add_event_handler(Events.EPOCH_COMPLETED, lambda t: states.update({t.state.epoch: saved(t)}))
    whole.run(data, max_epochs=4)
    second = restored(states[epoch])
    assert second.state.updates == {"optimizer": 3 * epoch}
    second.run(data)
    assert second.state.iteration == 12
    assert second.state.updates == whole.state.updates == {"optimizer": 12}
    assert same(everything_in(whole), everything_in(second))


def test_loading_gives_what_was_remembered_at_once():
    first = make_trainer()
    first.run(batches(3), max_epochs=1)
    second = restored(saved(first))
    assert same(everything_in(first), everything_in(second))
    one, other = saved(first)["trainer"]["weightsmith"], saved(second)["trainer"]["weightsmith"]
    assert one.keys() == other.keys()
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_number_of_the_last_update_is_restored():
    first = make_trainer()
    first.run(batches(3), max_epochs=1)
    second = restored(saved(first))
    assert second.state.update == first.state.update == 3
    numbers = []
    for event in (Events.STARTED, WeightEvents.WEIGHTS_EDITED, WeightEvents.UPDATE_COMPLETED):
        second.add_event_handler(event, lambda t, name: numbers.append((name, t.state.update)), event.name)
    second.run(batches(3), max_epochs=2)
    assert numbers[:4] == [("WEIGHTS_EDITED", 3), ("STARTED", 3), ("WEIGHTS_EDITED", 4), ("UPDATE_COMPLETED", 4)]


def test_a_restored_run_initializes_nothing_but_starts_feasible():
    first = make_trainer([Constant(1.0), MaxNorm(0.5)])
    first.run(batches(2), max_epochs=1)
    second = restored(saved(first), [Constant(1.0), MaxNorm(0.25)])
    seen = []
    second.add_event_handler(WeightEvents.INITIALIZING, lambda: seen.append("INITIALIZING"))
    second.add_event_handler(Events.STARTED, lambda t: seen.append(t.model[0].weight.detach().clone()))
    trained = second.model[0].weight.detach().clone()
    second.run(batches(2), max_epochs=2)
    assert len(seen) == 1
    norms = trained.norm(dim=1, keepdim=True)
    torch.testing.assert_close(seen[0], trained * (0.25 / norms).clamp(max=1))
    with pytest.raises(ConfigurationError):
        second.attach(Constant(0.0, where="0"))


def test_the_state_before_the_first_run_still_initializes():
    second = restored(saved(make_trainer([Constant(1.0)])), [Constant(1.0)])
    starts = []
    second.add_event_handler(Events.STARTED, lambda t: starts.append(t.model[0].weight.detach().clone()))
    second.run(batches(1), max_epochs=1)
    assert torch.equal(starts[0], torch.ones(4, 3))


def test_two_optimizers_counts_are_restored_each():
    def make():
        torch.manual_seed(0)
        models = {"one": nn.Linear(3, 1), "two": nn.Linear(3, 1)}
        optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.1) for name, model in models.items()}

        def step(trainer, batch):
            for name in ("one", "two", "two"):
                trainer.update(nn.functional.mse_loss(models[name](batch[0]), batch[1]), name)

        return Trainer(models, optimizers, step=step)

    first, second = make(), make()
    first.run(batches(2), max_epochs=1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.state.updates == {"one": 2, "two": 4}
    numbers = []
    second.add_event_handler(
        WeightEvents.UPDATE_COMPLETED, lambda t: numbers.append((t.state.optimizer, t.state.update))
    )
    second.run(batches(2), max_epochs=2)
    assert numbers[:3] == [("one", 3), ("two", 5), ("two", 6)]


def test_later_training_does_not_change_a_state_that_was_loaded():
    first = make_trainer([EMA(0.5)])
    first.run(batches(2), max_epochs=1)
    state = saved(first)
    second = restored(state, [EMA(0.5)])
    kept = copy.deepcopy(state["trainer"])
    second.run(batches(2), max_epochs=2)
    torch.testing.assert_close(state["trainer"]["weightsmith"], kept["weightsmith"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ([EMA(0.5)], [], "EMA"),
        ([EMA(0.5), EMA(0.9)], [EMA(0.5)], "EMA#1"),
        ([EMA(0.5)], [EMA(0.5, where="0")], r"2\.weight"),
    ],
    ids=repr,
)
def test_memory_that_fits_nowhere_is_refused_by_name_and_nothing_is_loaded(before, after, words):
    first = make_trainer(before)
    first.run(batches(2), max_epochs=1)
    second = make_trainer(after)
    with pytest.raises(ConfigurationError, match=words):
        second.load_state_dict(first.state_dict())
    assert second.state.updates == {"optimizer": 0}
    assert second.state.iteration == 0


def test_the_state_of_other_optimizers_is_refused():
    state = make_trainer([]).state_dict()
    state["weightsmith"]["updates"] = {"another": 3}
    with pytest.raises(ConfigurationError, match="optimizer"):
        make_trainer([]).load_state_dict(state)


def test_the_state_of_an_engine_of_ignites_says_where_the_loop_goes_on(caplog):
    """Its weights have been trained: they are not initialised."""
    other = Engine(lambda engine, batch: None)
    other.run(batches(2), max_epochs=1)
    trainer = make_trainer([Constant(1.0), NonNegative()])
    start = trainer.model[0].weight.detach().clone()
    trainer.load_state_dict(other.state_dict())
    starts = []
    trainer.add_event_handler(Events.STARTED, lambda t: starts.append(t.model[0].weight.detach().clone()))
    trainer.run(batches(2), max_epochs=3)
    assert torch.equal(starts[0], start.clamp(min=0))
    assert (trainer.state.iteration, trainer.state.updates) == (6, {"optimizer": 4})
    assert "of no Trainer" in caplog.text


def test_what_is_no_state_is_refused_in_ignites_words():
    with pytest.raises(ValueError, match="Required state attribute 'epoch_length' is absent"):
        make_trainer([]).load_state_dict({"iteration": 0, "max_epochs": 2})


@pytest.mark.parametrize("state", [State, TrainingState])
def test_a_state_put_in_place_counts_updates_anew(state):
    trainer = make_trainer([EMA(0.5)])
    trainer.run(batches(2), max_epochs=1)
    trainer.state = state(mark="mine")
    assert trainer.state_dict()["weightsmith"]["updates"] == {"optimizer": 0}
    numbers = []
    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED(every=2), lambda t: numbers.append(t.state.update))
    assert trainer.run(batches(2), max_epochs=2) is trainer.state
    assert (trainer.state.updates, trainer.state.mark, numbers) == ({"optimizer": 4}, "mine", [2, 4])


@pytest.mark.parametrize("state", [State, TrainingState])
def test_plugins_see_the_state_put_in_place(state):
    trainer, untouched = (make_trainer([Decay(0.1, every=3), MaxNorm(0.1, every=2)]) for _ in range(2))
    mine = trainer.state = state()
    trainer.run(batches(3), max_epochs=1)
    untouched.run(batches(3), max_epochs=1)
    assert mine.updates == trainer.state.updates == {"optimizer": 3}
    assert all(map(torch.equal, trainer.model.parameters(), untouched.model.parameters()))
