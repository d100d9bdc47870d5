"""Attaching and detaching plugins, before and within a run."""

import dataclasses

import pytest
import torch
from ignite.engine import Events
from torch import nn
from torch.nn.utils import parametrize
from weightsmith import ConfigurationError, Parametrization, Trainer, WeightEvents
from weightsmith_plugins import L2, Constant, Decay, MaxNorm, Perturb, UnitNorm, WeightHistograms

UPDATE_EVENTS = [
    WeightEvents.MICROBATCH_COMPLETED,
    WeightEvents.GRADIENTS_COMPUTED,
    WeightEvents.GRADIENTS_READY,
    WeightEvents.STEP_COMPLETED,
    WeightEvents.WEIGHTS_EDITED,
    WeightEvents.UPDATE_COMPLETED,
]


class Doubled(Parametrization):
    """The layer computes with twice its raw parameter."""

    def forward(self, weight, site):
        return 2 * weight

    def right_inverse(self, weight, site):
        return weight / 2


def batches(count):
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 3), (4, 2)]
    return [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(count)]


def make_trainer(plugins=(), lr=0.1, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)
    return Trainer(model, optimizer, nn.MSELoss(), plugins=plugins, seed=3, **options)


def weights_of(trainer):
    return [weight.detach().clone() for _, weight in sorted(trainer.weights().items())]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("change", ["attach", "detach"])
@pytest.mark.parametrize(
    "plugin", [L2(0.2), L2(0.2, mode="decoupled"), Decay(0.2), MaxNorm(0.3), Perturb(0.1)], ids=repr
)
@pytest.mark.parametrize("event", UPDATE_EVENTS, ids=lambda event: event.name)
def test_a_change_in_mid_update_takes_effect_at_the_next(event, plugin, change):
    """Changed within update 2 of 4 it is as if it acted from update 3 on, or up to update 2."""
    limits = {"attach": {"after": 2}, "detach": {"before": 3}}[change]
    always = make_trainer([dataclasses.replace(plugin, **limits)])
    changed = make_trainer([] if change == "attach" else [plugin])
    changed.add_event_handler(event(once=2), lambda t: getattr(t, change)(plugin))
    ends = []
    for trainer in (always, changed):
        if isinstance(plugin, MaxNorm):  # feasible, so that the run at the start changes nothing
            with torch.no_grad():
                for weight in trainer.weights().values():
                    weight.mul_(0.01)
        trainer.run(batches(4), max_epochs=1)
        ends.append(weights_of(trainer))
    assert same(*ends)
    assert changed.plugins == ((plugin,) if change == "attach" else ())


@pytest.mark.parametrize("mode", ["project", "forward"])
def test_a_constraint_attached_between_updates_binds_from_the_next_on(mode):
    trainer = make_trainer()
    norms = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda t: t.attach(UnitNorm(mode=mode, where="0")))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda t: norms.append(t.model[0].weight.detach().norm(dim=1))
    )
    trainer.run(batches(4), max_epochs=1)
    for norm in norms[2:]:
        torch.testing.assert_close(norm, torch.ones(5))
    assert (norms[0] - 1).abs().max() > 0.05


@pytest.mark.parametrize("change", ["attach", "detach"])
@pytest.mark.parametrize("event", UPDATE_EVENTS, ids=lambda event: event.name)
@pytest.mark.parametrize("plugin", [Doubled(where="2.weight"), UnitNorm(mode="forward", where="2.weight")], ids=repr)
def test_a_parametrization_changed_in_mid_update_lets_the_update_finish_as_it_was(plugin, event, change):
    """The same change right after the update must give the same run."""

    def run(event, filtered):
        trainer = make_trainer([] if change == "attach" else [plugin])
        trainer.add_event_handler(event(**filtered), lambda t: getattr(t, change)(plugin))
        trainer.run(batches(4), max_epochs=1)
        return weights_of(trainer)

    assert same(run(event, {"once": 2}), run(Events.ITERATION_COMPLETED, {"once": 2}))


def test_an_initializer_after_the_start_is_refused_and_before_it_is_not():
    trainer = make_trainer()
    trainer.attach(Constant(1.0, where="0.weight"))
    trainer.run(batches(1), max_epochs=1)
    with pytest.raises(ConfigurationError, match=r"Constant\(2\.0|Constant\(value=2\.0"):
        trainer.attach(Constant(2.0, where="2.weight"))
    assert trainer.plugins == (Constant(1.0, where="0.weight"),)


@pytest.mark.parametrize("plugin", [Doubled(where="2.weight"), UnitNorm(mode="forward", where="2.weight")], ids=repr)
def test_detaching_undoes_a_parametrization_and_keeps_what_the_layer_computed(plugin):
    trainer = make_trainer([plugin])
    trainer.run(batches(2), max_epochs=1)
    layer, inputs = trainer.model[2], torch.randn(3, 5)
    computed = layer(inputs).detach()
    trainer.detach(plugin)
    assert not parametrize.is_parametrized(layer)
    assert torch.equal(layer(inputs), computed)
    assert set(trainer.weights()) == {f"{layer}.{leaf}" for layer in (0, 2, 4) for leaf in ("weight", "bias")}
    before = layer.weight.detach().clone()
    trainer.run(batches(2), max_epochs=1)
    assert not torch.equal(layer.weight, before), "the optimizer goes on with the same parameter"


def test_detaching_what_is_not_attached_is_refused_naming_those_that_are():
    trainer = make_trainer([L2(0.5)])
    with pytest.raises(ConfigurationError, match=r"L2\(strength=0\.25\).*L2\(strength=0\.5\)"):
        trainer.detach(L2(0.25))
    trainer.detach(L2(0.5))  # an equal one will do
    assert trainer.plugins == ()


@pytest.mark.parametrize(
    ("held", "refused"),
    [
        (MaxNorm(1.0, where="2.weight"), Doubled(where="2.weight")),
        (L2(0.1, mode="decoupled", where="2.weight"), Doubled(where="2.weight")),
        (MaxNorm(1.0, where="2.weight"), UnitNorm(mode="forward", where="2.weight")),
    ],
    ids=repr,
)
def test_a_plugin_that_is_refused_leaves_nothing_behind(held, refused):
    trainer, twin = make_trainer([held]), make_trainer([held])
    with pytest.raises(ConfigurationError):
        trainer.attach(refused)
    assert trainer.plugins == (held,)
    assert not parametrize.is_parametrized(trainer.model[2])
    assert str(trainer.plan()) == str(twin.plan())
    for each in (trainer, twin):
        each.run(batches(2), max_epochs=1)
    assert same(weights_of(trainer), weights_of(twin))


@pytest.mark.parametrize("event", [Events.EPOCH_COMPLETED, Events.STARTED, Events.ITERATION_COMPLETED], ids=str)
def test_a_handler_that_attaches_to_its_own_event_is_called_once(event):
    trainer = make_trainer()
    calls = []

    def attach(engine):
        calls.append(engine.state.epoch)
        assert len(calls) == 1, "called again within the same firing"
        engine.attach(WeightHistograms(at=event))

    trainer.add_event_handler(event, attach)
    trainer.run(batches(1), max_epochs=1)
    assert len(calls) == 1
    assert trainer.plugins == (WeightHistograms(at=event),)
