"""An optimizer's step without torch's record of it: the same weights, and whoever wants to know of steps does."""

import functools
import subprocess
import sys
import textwrap
import warnings
from types import MethodType

import pytest
import torch
from ignite.engine import Events
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile
from weightsmith import Trainer, stepping

KINDS = [
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ASGD",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
]
RECORD = "Optimizer.step#SGD.step"


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randn(shape, generator=generator) for shape in [(4, 3), (4, 1)]) for _ in range(count)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def make_trainer(kind=torch.optim.SGD):
    model = network()
    return Trainer(model, kind(model.parameters(), lr=0.01), nn.MSELoss())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_the_plain_loop(kind):
    trainer, twin = make_trainer(getattr(torch.optim, kind)), network()
    optimizer = getattr(torch.optim, kind)(twin.parameters(), lr=0.01)
    for inputs, targets in batches(6):
        optimizer.zero_grad()
        nn.functional.mse_loss(twin(inputs), targets).backward()
        optimizer.step()
    trainer.run(batches(6), max_epochs=1)
    assert all(map(torch.equal, trainer.model.parameters(), twin.parameters()))


@pytest.fixture
def recorded(monkeypatch):
    """What torch records for profilers."""
    names, record = [], torch.autograd.profiler.record_function

    def noted(name):
        names.append(name)
        return record(name)

    monkeypatch.setattr(torch.autograd.profiler, "record_function", noted)
    return names


def test_nothing_is_recorded_where_nobody_reads_it(recorded):
    trainer = make_trainer()
    trainer.run(batches(3), max_epochs=1)
    assert recorded == []
    trainer.optimizers["optimizer"].step()
    assert recorded == [RECORD]


# -------------------------------------------------------------------- who learns of a step


def hooked_before(optimizer, note):
    optimizer.register_step_pre_hook(note)


def hooked_after(optimizer, note):
    optimizer.register_step_post_hook(note)


def hooked_before_all(optimizer, note):
    return register_optimizer_step_pre_hook(note)


def hooked_after_all(optimizer, note):
    return register_optimizer_step_post_hook(note)


def replaced(optimizer, note):
    step = optimizer.step
    optimizer.step = lambda: (note(), step())


@pytest.mark.parametrize("how", [hooked_before, hooked_after, hooked_before_all, hooked_after_all, replaced])
def test_who_asks_to_learn_of_steps_does_from_the_next_one_on(how):
    trainer, steps, handles = make_trainer(), [], []

    def ask():
        handles.append(how(trainer.optimizers["optimizer"], lambda *_: steps.append(trainer.state.update)))

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), ask)
    trainer.run(batches(4), max_epochs=1)
    for handle in filter(None, handles):
        handle.remove()
    assert steps == [3, 4]


def test_a_class_whose_step_somebody_wraps_steps_through_that():
    class Mine(torch.optim.SGD):
        pass

    trainer, steps = make_trainer(Mine), []
    step = Mine.step

    @functools.wraps(step)  # which takes over torch's mark of a step that is recorded
    def counted(self, *args):
        steps.append(args)
        return step(self, *args)

    Mine.step = counted
    trainer.run(batches(4), max_epochs=1)
    assert steps == [()] * 4


def test_an_optimizer_of_ones_own_steps_as_it_says():
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            super().step()

    trainer, twin = make_trainer(Twice), network()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    for inputs, targets in batches(4):
        optimizer.zero_grad()
        nn.functional.mse_loss(twin(inputs), targets).backward()
        optimizer.step()
        optimizer.step()
    trainer.run(batches(4), max_epochs=1)
    assert all(map(torch.equal, trainer.model.parameters(), twin.parameters()))


def test_an_optimizer_around_another_that_torch_did_not_prepare_steps():
    class Around(torch.optim.Optimizer):
        def __init__(self, parameters, lr):
            self.inner = torch.optim.SGD(parameters, lr=lr)
            self.steps = 0

        state = property(lambda self: self.inner.state)
        defaults = property(lambda self: self.inner.defaults)
        param_groups = property(lambda self: self.inner.param_groups)

        def step(self, closure=None):
            self.steps += 1
            return self.inner.step(closure)

    trainer, plain = make_trainer(Around), make_trainer()
    for each in (trainer, plain):
        each.run(batches(3), max_epochs=1)
    assert trainer.optimizers["optimizer"].steps == 3
    assert all(map(torch.equal, trainer.model.parameters(), plain.model.parameters()))


def halving(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)


def test_a_scheduler_of_torchs_sees_that_the_optimizer_has_stepped(recorded):
    trainer = make_trainer()
    scheduler = halving(trainer.optimizers["optimizer"])
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: scheduler.step())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.run(batches(3), max_epochs=1)
    assert (scheduler.get_last_lr(), recorded) == ([0.01 / 8], [])


def test_a_scheduler_of_torchs_complains_where_no_optimizer_has_stepped():
    trainer = make_trainer()
    scheduler = halving(trainer.optimizers["optimizer"])
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: scheduler.step())
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        trainer.run(batches(1), max_epochs=1)


def test_a_scheduled_step_of_ones_own_is_taken():
    trainer, steps = make_trainer(), []
    optimizer = trainer.optimizers["optimizer"]
    optimizer.step = MethodType(lambda _: steps.append(trainer.state.update), optimizer)
    halving(optimizer)
    trainer.run(batches(3), max_epochs=1)
    assert steps == [1, 2, 3]


def test_who_puts_a_function_around_a_scheduled_step_is_called():
    trainer, steps = make_trainer(), []
    optimizer = trainer.optimizers["optimizer"]
    halving(optimizer)
    step = optimizer.step
    optimizer.step = functools.wraps(step)(lambda: (steps.append(trainer.state.update), step()))
    trainer.run(batches(3), max_epochs=1)
    assert steps == [1, 2, 3]


def profiler_of_all_threads(**options):
    try:
        everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    except TypeError:
        pytest.skip("this torch profiles one thread")
    return profile(experimental_config=everywhere, **options)


@pytest.mark.parametrize("make", [profile, profiler_of_all_threads])
def test_profilers_of_torchs_list_the_steps_while_they_record(make):
    trainer, profiler = make_trainer(), make(activities=[ProfilerActivity.CPU])
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: profiler.start())
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: profiler.stop())
    trainer.run(batches(6), max_epochs=1)
    assert [event.is_user_annotation for event in profiler.events() if event.name == RECORD] == [True] * 3


def test_torchs_older_profiler_lists_the_steps():
    trainer = make_trainer()
    with torch.autograd.profiler_legacy.profile() as profiler:
        trainer.run(batches(3), max_epochs=1)
    assert [event.name for event in profiler.function_events].count(RECORD) == 3


@pytest.mark.parametrize("wrap", [functools.wraps, lambda _: lambda function: function])
def test_what_another_library_puts_around_all_steps_is_called(monkeypatch, wrap):
    steps, hook = [], torch.optim.Optimizer.profile_hook_step

    def counting(step):
        hooked = hook(step)

        @wrap(hooked)
        def counted(self, *args):
            steps.append(self)
            return hooked(self, *args)

        return counted

    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    monkeypatch.setattr(torch.optim.Optimizer, "profile_hook_step", staticmethod(counting))
    stepping._code_around_steps.cache_clear()
    try:
        make_trainer(Mine).run(batches(2), max_epochs=1)
    finally:
        stepping._code_around_steps.cache_clear()
    assert len(steps) == 2


def test_an_optimizer_that_another_library_put_in_place_of_torchs_before_the_import_is_let_be():
    code = """
        import torch

        class Refusing(torch.optim.SGD):
            def __init__(self, *_, **__):
                raise AssertionError("made for no training")

        torch.optim.SGD = Refusing
        from weightsmith import Trainer

        model = torch.nn.Linear(3, 1)
        trainer = Trainer(model, torch.optim.Adam(model.parameters()), torch.nn.MSELoss())
        trainer.run([(torch.ones(2, 3), torch.ones(2, 1))], max_epochs=1)
    """
    script = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    subprocess.run(script, timeout=120, check=True)
