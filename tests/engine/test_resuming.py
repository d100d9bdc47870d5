"""Resuming where it is easy to lose something."""

import functools
import os
import random
import signal

import pytest
import torch
from ignite.engine import Engine, Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weightsmith import ConfigurationError, RunStopped, Trainer, WeightEvents
from weightsmith.checkpoint import saved_in
from weightsmith_plugins import L2, Checkpoints, Losses, TensorBoard

DATA = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(5)]


def trainer_of(plugins=(), **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.3), nn.Linear(5, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return Trainer(model, optimizer, nn.MSELoss(), plugins=plugins, seed=3, **options)


def weights(trainer):
    return [weight.detach().clone() for weight in trainer.model.parameters()]


def equal(one, other):
    return all(map(torch.equal, weights(one), weights(other)))


def saving_at(trainer, iteration, path, event=Events.ITERATION_COMPLETED):
    trainer.add_event_handler(event, lambda: trainer.state.iteration == iteration and trainer.save(path))


def spoil_once(trainer, iteration):
    """A weight becomes NaN, once."""
    done = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def spoil():
        if trainer.state.iteration == iteration and not done:
            done.append(True)
            with torch.no_grad():
                trainer.model[0].weight[0, 0] = float("nan")


def test_a_resumed_run_saved_before_it_goes_on_keeps_its_place(tmp_path):
    whole = trainer_of(accumulate=2)
    saving_at(whole, 3, tmp_path / "a")
    whole.run(DATA, max_epochs=2)
    second, third = trainer_of(accumulate=2), trainer_of(accumulate=2)
    second.resume(tmp_path / "a")
    second.save(tmp_path / "b")
    third.resume(tmp_path / "b")
    third.run(DATA, max_epochs=2)
    assert equal(third, whole)


class Part:
    """Something kept, that can fail to load."""

    def __init__(self):
        self.fails = False

    def state_dict(self):
        return {"a": 1}

    def load_state_dict(self, state):
        if self.fails:
            self.fails = False
            raise ValueError("no")


def test_a_resume_that_fails_forgets_no_resume_before_it(tmp_path):
    whole, part = trainer_of(accumulate=2, keep=[Part()]), Part()
    saving_at(whole, 3, tmp_path / "a")
    whole.run(DATA, max_epochs=2)
    second = trainer_of(accumulate=2, keep=[part])
    second.resume(tmp_path / "a")
    part.fails = True
    with pytest.raises(ConfigurationError, match="cannot be loaded, and nothing was: no"):
        second.resume(tmp_path / "a")
    second.run(DATA, max_epochs=2)
    assert equal(second, whole)


def test_a_run_that_is_refused_spends_no_resume(tmp_path):
    whole = trainer_of()
    saving_at(whole, 3, tmp_path / "a")
    whole.run(DATA, max_epochs=2)
    second = trainer_of()
    second.resume(tmp_path / "a")
    with pytest.raises(ConfigurationError, match="the data have 2 batches"):
        second.run(DATA[:2], max_epochs=2)
    second.run(DATA, max_epochs=2)
    assert equal(second, whole)


def test_checkpoints_go_on_after_a_run_that_raised(tmp_path):
    trainer = trainer_of([Checkpoints(5)], run_dir=tmp_path)
    fails = [True]

    @trainer.on(Events.ITERATION_COMPLETED(once=5))
    def fail():
        if fails.pop():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer.run(DATA, max_epochs=4)
    trainer.run(DATA, max_epochs=4)
    assert saved_in(tmp_path / "checkpoints")[0].name == "00000020"


def test_going_back_goes_on_saving_and_logging(tmp_path):
    trainer = trainer_of([Checkpoints(6), Losses(), TensorBoard()], run_dir=tmp_path, nonfinite="restore")
    spoil_once(trainer, 16)
    trainer.run(DATA, max_epochs=8)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/optimizer")] == list(range(1, 9))
    assert saved_in(tmp_path / "checkpoints")[0].name == "00000040"


def test_going_back_though_a_plugin_was_attached_since(tmp_path):
    trainer = trainer_of([Checkpoints("1 epochs")], run_dir=tmp_path, nonfinite="restore")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=7), lambda: trainer.attach(L2(0.1)))
    spoil_once(trainer, 8)
    assert trainer.run(DATA, max_epochs=3).iteration == 15


def test_a_signal_in_an_iteration_that_goes_back_is_not_forgotten(tmp_path):
    trainer = trainer_of([Checkpoints("1 epochs")], run_dir=tmp_path, nonfinite="restore")
    spoil_once(trainer, 7)
    trainer.add_event_handler(
        WeightEvents.MICROBATCH_COMPLETED,
        lambda: trainer.state.iteration == 8 and os.kill(os.getpid(), signal.SIGTERM),
    )
    with pytest.raises(RunStopped) as raised:
        trainer.run(DATA, max_epochs=3)
    assert raised.value.path.name == "00000005"
    assert all(weight.isfinite().all() for weight in weights(trainer))


def test_the_beginning_is_saved_after_every_handler_of_the_start(tmp_path):
    def made(**options):
        trainer = trainer_of(**options)
        trainer.add_event_handler(Events.STARTED, lambda: torch.rand(3))
        return trainer

    whole = made(run_dir=tmp_path, nonfinite="restore")
    whole.run(DATA)
    second = made()
    second.resume(tmp_path / "checkpoints" / "00000000")
    second.run(DATA)
    assert equal(second, whole)


def loader(seed=None):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    inputs, targets = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)), torch.ones(20, 2)
    return DataLoader(TensorDataset(inputs, targets), batch_size=4, shuffle=True, generator=generator)


def test_a_loader_with_a_generator_after_an_epoch_cut_short(tmp_path):
    def made():
        trainer = trainer_of()
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: trainer.terminate_epoch())
        return trainer

    whole = made()
    saving_at(whole, 3, tmp_path / "a", Events.EPOCH_COMPLETED)
    whole.run(loader(5), max_epochs=3)
    second = made()
    second.resume(tmp_path / "a")
    second.run(loader(5), max_epochs=3)
    assert equal(second, whole)


class Shuffled(list):
    """Batches in an order that is drawn for each pass."""

    def __iter__(self):
        return iter(random.sample(list(super().__iter__()), len(self)))


@pytest.mark.parametrize("kind", [list, tuple, Shuffled])
def test_in_the_middle_of_batches_that_lie_in_an_order_or_in_one_that_is_drawn(tmp_path, kind):
    whole, second = trainer_of(), trainer_of()
    saving_at(whole, 8, tmp_path / "a")
    whole.run(kind(DATA), max_epochs=3)
    random.seed(5)
    second.resume(tmp_path / "a")
    second.run(kind(DATA), max_epochs=3)
    assert equal(second, whole)


def test_other_data_that_draw_an_order_keep_it_when_they_are_saved_in_turn(tmp_path):
    first, second, third = trainer_of(), trainer_of(), trainer_of()
    saving_at(first, 7, tmp_path / "a")
    first.run(DATA, max_epochs=3)
    second.resume(tmp_path / "a")
    saving_at(second, 8, tmp_path / "b")
    second.run(loader(), max_epochs=3)
    third.resume(tmp_path / "b")
    third.run(loader(), max_epochs=3)
    assert equal(third, second)


def endless(count=1000):
    generator = torch.Generator().manual_seed(9)
    for _ in range(count):
        yield torch.randn(4, 3, generator=generator), torch.randn(4, 2, generator=generator)


@pytest.mark.parametrize("runs", [1, 2])
def test_an_iterator_goes_on_from_what_it_gave_in_all(tmp_path, runs):
    def made():
        trainer = trainer_of()
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: trainer.terminate_epoch())
        return trainer

    whole, data = made(), endless()
    saving_at(whole, 11, tmp_path / "a")
    whole.run(data, max_epochs=2 if runs == 2 else 4, epoch_length=5)
    if runs == 2:
        whole.run(data, max_epochs=4, epoch_length=5)
    second = made()
    second.resume(tmp_path / "a")
    second.run(endless(), max_epochs=4, epoch_length=5)
    assert equal(second, whole)


def test_an_iterator_cannot_go_back(tmp_path):
    trainer = trainer_of([Checkpoints(4)], run_dir=tmp_path, nonfinite="restore")
    spoil_once(trainer, 6)
    with pytest.raises(ConfigurationError, match="an iterator that has given more"):
        trainer.run(endless(), max_epochs=2, epoch_length=5)


def test_data_that_were_replaced_are_told(tmp_path, caplog):
    trainer = trainer_of()
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: trainer.set_data(DATA[::-1]))
    saving_at(trainer, 4, tmp_path / "a")
    trainer.run(DATA, max_epochs=2)
    trainer_of().resume(tmp_path / "a")
    assert "set_data() gave the saved run other data" in caplog.text


def test_what_an_optimizer_trains_beside_the_model_comes_back(tmp_path):
    def made():
        torch.manual_seed(0)
        model, temperature = nn.Linear(3, 2), nn.Parameter(torch.ones(()))
        optimizer = torch.optim.Adam([*model.parameters(), temperature], lr=0.1)

        def step(trainer, batch):
            trainer.update(((model(batch[0]) * temperature - batch[1]) ** 2).mean())

        return Trainer(model, optimizer, step=step, seed=0), temperature

    (whole, warm), (second, other) = made(), made()
    saving_at(whole, 4, tmp_path / "a")
    whole.run(DATA, max_epochs=2)
    second.resume(tmp_path / "a")
    second.run(DATA, max_epochs=2)
    assert torch.equal(warm, other)
    assert equal(second, whole)


def test_modules_are_told_the_version_of_their_form(tmp_path):
    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state, prefix, metadata, *rest):
            if metadata.get("version", 1) < 2:
                state[f"{prefix}weight"] = state[f"{prefix}weight"] * 2
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    def made():
        torch.manual_seed(0)
        model = Versioned(3, 2)
        return Trainer(model, torch.optim.Adam(model.parameters()), nn.MSELoss())

    first, second = made(), made()
    first.run(DATA)
    first.save(tmp_path / "a")
    second.resume(tmp_path / "a")
    assert equal(first, second)


def test_a_bad_microbatch_is_found_before_the_step():
    trainer, bad = trainer_of(accumulate=2), (torch.full((4, 3), float("nan")), torch.zeros(4, 2))
    with pytest.raises(ArithmeticError, match="update 2, epoch 1"):
        trainer.run([*DATA[:2], bad, DATA[0]])
    assert all(weight.isfinite().all() for weight in weights(trainer))


def test_the_crash_itself_is_raised_though_it_cannot_be_saved(tmp_path, caplog):
    class Part:
        def state_dict(self):
            raise KeyError("device lost")

        def load_state_dict(self, state):
            raise AssertionError

    trainer = trainer_of(run_dir=tmp_path, keep=[Part()])
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: functools.reduce(lambda a, b: a / 0, [1, 1]))
    with pytest.raises(ZeroDivisionError):
        trainer.run(DATA)
    assert "what there was when the run crashed is lost: 'device lost'" in caplog.text


def test_a_checkpoint_may_be_called_by_a_number(tmp_path):
    trainer = trainer_of()
    trainer.run(DATA)
    trainer.save(tmp_path / "7")
    assert trainer_of().resume(tmp_path / "7") == tmp_path / "7"


@pytest.mark.parametrize("at", [3, 7])
def test_a_number_of_iterations_over_data_of_unknown_length(tmp_path, at):
    class Unknown:
        def __iter__(self):
            return iter(DATA)

    whole, second = trainer_of(), trainer_of()
    saving_at(whole, at, tmp_path / "a")
    whole.run(Unknown(), max_iters=13)
    second.resume(tmp_path / "a")
    second.run(Unknown(), max_iters=13)
    assert second.state.iteration == 13
    assert equal(second, whole)


def test_a_run_that_ended_without_its_end_is_over(tmp_path):
    trainer = trainer_of()

    @trainer.on(Events.ITERATION_COMPLETED(once=3))
    def stop():
        trainer.save(tmp_path / "a")
        trainer.terminate(skip_completed=True)

    trainer.run(DATA, max_epochs=2)
    second = trainer_of()
    second.resume(tmp_path / "a")  # saved though no COMPLETED came
    assert second.run(DATA, max_epochs=2).iteration == 3


def test_a_run_without_interrupts_saves_when_nothing_is_left_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "interrupt_resume_enabled", False)
    trainer = trainer_of()
    saving_at(trainer, 2, tmp_path / "two")
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: seen.append((tmp_path / "two").exists()))
    trainer.run(loader(5), max_epochs=1)
    again = trainer_of()
    again.resume(tmp_path / "two")
    again.run(loader(5), max_epochs=1)
    assert seen == [False]
    assert equal(again, trainer)
