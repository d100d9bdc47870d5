"""A plan: what happens is what it says, values over time among it, and what nobody shapes."""

import pytest
import torch
from torch import nn
from weightsmith import Trainer, WeightEvents, linear, piecewise
from weightsmith_plugins import (
    EMA,
    L2,
    Clamp,
    ClipNorm,
    Constant,
    Freeze,
    JSONLines,
    KaimingNormal,
    MaxNorm,
    Noise,
    Perturb,
    Scale,
    WeightHistograms,
    WeightNorm,
)

UPDATE_EVENTS = ("GRADIENTS_COMPUTED", "GRADIENTS_READY", "STEP_COMPLETED", "WEIGHTS_EDITED", "UPDATE_COMPLETED")


def make_trainer(plugins, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, optimizer, nn.MSELoss(), plugins=plugins, seed=0, **options)


def batches(count):
    return [(torch.randn(8, 4), torch.randn(8, 3)) for _ in range(count)]


def test_the_trace_of_a_run_is_what_the_plan_says(tmp_path):
    plugins = [
        EMA(0.9),
        WeightHistograms(),
        MaxNorm(0.5, where="0.weight"),
        JSONLines(),
        Perturb(0.01, every=2),
        ClipNorm(1.0),
        L2(0.1, after=1),
        Noise(0.1, before=5),
        KaimingNormal(),
        L2(0.2, mode="decoupled", after="1 epochs"),
    ]
    trainer = make_trainer(plugins, run_dir=tmp_path)
    rows = trainer.plan().rows
    trace = []
    trainer.add_event_handler(
        WeightEvents.PLUGIN_STARTED,
        lambda t: trace.append((t.state.epoch, t.state.optimizer, t.state.update, t.state.acting)),
    )
    trainer.run(batches(3), max_epochs=2)

    def planned(event):
        return [row.plugin for row in rows if row.event == event]

    start = [(acting.event, repr(acting.plugin)) for epoch, _, _, acting in trace if epoch == 0]
    assert [plugin for event, plugin in start if event == "INITIALIZING"] == planned("INITIALIZING")
    assert [plugin for event, plugin in start if event == "WEIGHTS_EDITED"] == planned("WEIGHTS_EDITED")
    due = {
        repr(Perturb(0.01, every=2)): lambda update, epoch: update % 2 == 0,
        repr(L2(0.1, after=1)): lambda update, epoch: update > 1,
        repr(Noise(0.1, before=5)): lambda update, epoch: update < 5,
        repr(L2(0.2, mode="decoupled", after="1 epochs")): lambda update, epoch: epoch > 1,
    }
    for update in range(1, 7):
        epoch = (update + 2) // 3
        found = [(a.event, repr(a.plugin)) for _, optimizer, number, a in trace if optimizer and number == update]
        wanted = [(row.event, row.plugin) for row in rows if row.event in UPDATE_EVENTS]
        assert found == [pair for pair in wanted if due.get(pair[1], lambda *_: True)(update, epoch)], update
    for epoch in (1, 2):
        found = [repr(a.plugin) for e, _, _, a in trace if e == epoch and a.event == "EPOCH_COMPLETED"]
        assert found == planned("EPOCH_COMPLETED")


def test_values_over_time_are_those_of_the_run():
    plugins = [L2(linear(1.0, 0.0), where="0.weight"), Clamp(-1, piecewise({0: 3.0, "2 epochs": 2.0}))]
    trainer = make_trainer(plugins)
    values = {row.plugin: row.values for row in trainer.plan(epochs=4, epoch_length=5).rows}
    assert values[repr(plugins[0])] == {
        "strength": ((0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0)),
    }
    assert values[repr(plugins[1])] == {"high": ((0.0, 3.0), (0.25, 3.0), (0.5, 3.0), (0.75, 2.0), (1.0, 2.0))}
    seen = {}

    def note(t):
        seen[t.state.iteration / 20] = t._attachments.the(L2, None).current().strength

    trainer.add_event_handler(WeightEvents.GRADIENTS_READY, note)
    trainer.run(batches(5), max_epochs=4)
    for share, value in values[repr(plugins[0])]["strength"][1:]:
        assert seen[share] == value
    text = str(trainer.plan(4, 5))
    assert "strength: 1 at 0%, 0.75 at 25%, 0.5 at 50%, 0.25 at 75%, 0 at 100% of the run" in text
    assert all(row.values == {} for row in trainer.plan().rows)


def test_weights_that_nobody_shapes_are_named():
    trainer = make_trainer([L2(0.1, where="0.weight"), WeightHistograms(), EMA(0.9)])
    assert trainer.plan().untouched == ("0.bias", "2.weight", "2.bias")
    assert "SHAPED BY NONE\n      0.bias, 2.weight, 2.bias" in str(trainer.plan())
    trainer.attach(WeightNorm(where="2.weight"))
    assert set(trainer.plan().untouched) == {"0.bias", "2.bias"}
    trainer.attach(Freeze(where="*.bias"))
    assert trainer.plan().untouched == ()
    assert "SHAPED BY NONE" not in str(trainer.plan())


def test_a_weight_that_is_drawn_twice_is_noted():
    trainer = make_trainer([KaimingNormal(), Constant(1.0, where="2"), Scale(2.0, where="0.weight")])
    notes = [row.note for row in trainer.plan().rows]
    assert notes == [
        "",
        "drawn before by KaimingNormal(): 2.weight",
        "drawn before by KaimingNormal(): 0.weight",
    ]


@pytest.mark.parametrize("plugins", [[], [WeightHistograms()]])
def test_a_plan_of_little_is_short(plugins):
    text = str(make_trainer(plugins).plan())
    assert ("no plugin is attached" in text) == (not plugins)
