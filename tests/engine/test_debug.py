"""``Trainer(debug=True)`` names who wrote where it should not, and changes nothing of a correct run."""

import pytest
import torch
from ignite.engine import Events
from torch import nn
from weightsmith import (
    Average,
    Constraint,
    GradientEditor,
    Initializer,
    Penalty,
    PluginContractError,
    Probe,
    Trainer,
    WeightEditor,
    WeightEvents,
)
from weightsmith_plugins import (
    EMA,
    L1,
    L2,
    Centralize,
    ClipNorm,
    Decay,
    KaimingNormal,
    MaxNorm,
    Perturb,
    WeightHistograms,
)


def make_trainer(*plugins, debug=True, model=None):
    torch.manual_seed(0)
    model = model or nn.ModuleDict({"fc1": nn.Linear(2, 3), "fc2": nn.Linear(3, 2)})
    inputs = torch.randn(4, 2)

    def step(trainer, batch):
        return trainer.update(model["fc2"](model["fc1"](inputs)).square().mean())

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Trainer(model, optimizer, step=step, plugins=plugins, seed=0, debug=debug)


def blamed(trainer):
    with pytest.raises(PluginContractError) as caught:
        trainer.run([0, 0], max_epochs=1)
    return str(caught.value)


def assert_names(message, *words):
    assert [word for word in words if word not in message] == [], message


def test_a_plugin_that_writes_to_a_weight_it_does_not_select_is_named():
    class Stray(WeightEditor):
        def edit(self, weight, gradient, site):
            model["fc2"].weight.mul_(2)
            return weight

    trainer = make_trainer(Stray(where="fc1"))
    model = trainer.model
    assert_names(blamed(trainer), "Stray(", "'fc2.weight'", "weight", "STEP_COMPLETED", "it selects")


def test_a_gradient_editor_that_writes_to_weights_is_named():
    class Pushy(GradientEditor):
        def edit(self, gradient, weight, site):
            weight.add_(1.0)
            return gradient

    assert_names(blamed(make_trainer(Pushy(where="fc1.weight"))), "Pushy(", "'fc1.weight'", "GRADIENTS_READY")


def test_a_weight_editor_that_writes_to_gradients_is_named():
    class Eraser(WeightEditor):
        def edit(self, weight, gradient, site):
            gradient.zero_()
            return weight

    assert_names(blamed(make_trainer(Eraser(where="fc1.bias"))), "Eraser(", "gradient of 'fc1.bias'", "STEP_COMPLETED")


def test_a_penalty_that_writes_to_the_weight_is_named():
    class Greedy(Penalty):
        def cost(self, weight, site):
            return weight.sum()

        def gradient(self, weight, site):
            return weight.mul_(0.5)

    assert_names(blamed(make_trainer(Greedy(where="fc2.weight"))), "Greedy(", "'fc2.weight'", "GRADIENTS_COMPUTED")


def test_an_average_that_writes_to_the_weight_is_named():
    class Backwards(Average):
        def average(self, mean, weight, site):
            weight.zero_()
            return mean

    assert_names(blamed(make_trainer(Backwards(where="fc2.weight"))), "Backwards(", "'fc2.weight'", "UPDATE_COMPLETED")


def test_a_constraint_and_an_initializer_that_stray_at_the_start_are_named():
    def stray(kind, method):
        def write(self, weight, site):
            with torch.no_grad():
                trainer.model["fc2"].bias.add_(1.0)
            return weight

        return type(kind)("Stray", (kind,), {method: write})

    for kind, method, event in [
        (Constraint, "project", "WEIGHTS_EDITED"),
        (Initializer, "draw", "INITIALIZING"),
    ]:
        trainer = make_trainer(stray(kind, method)(where="fc1.weight"))
        assert_names(blamed(trainer), "Stray(", "'fc2.bias'", event)


def test_a_probe_that_writes_is_named():
    class Heavy(Probe):
        def measure(self, weight, site):
            weight.mul_(0.5)
            return {"weights": weight.sum()}

    assert_names(blamed(make_trainer(Heavy(where="fc1.weight"))), "Heavy(", "'fc1.weight'", "EPOCH_COMPLETED")


@pytest.mark.parametrize(
    "event", [WeightEvents.UPDATE_COMPLETED, WeightEvents.UPDATE_COMPLETED(every=2)], ids=["plain", "filtered"]
)
def test_a_users_handler_that_writes_after_the_last_word_is_named(event):
    trainer = make_trainer()

    @trainer.on(event)
    def shrink_everything(engine):
        with torch.no_grad():
            engine.model["fc1"].bias.mul_(0.5)

    assert_names(blamed(trainer), "shrink_everything", "'fc1.bias'", "UPDATE_COMPLETED", "nothing")


def test_a_handler_may_write_what_its_event_is_for_and_nothing_else():
    def write_gradient(engine):
        engine.model["fc1"].weight.grad.zero_()

    allowed = make_trainer()
    allowed.add_event_handler(WeightEvents.GRADIENTS_READY, write_gradient)
    allowed.run([0, 0], max_epochs=1)
    assert not allowed.model["fc1"].weight.grad.any()
    late = make_trainer()
    late.add_event_handler(WeightEvents.STEP_COMPLETED, write_gradient)
    assert_names(blamed(late), "write_gradient", "gradient of 'fc1.weight'", "STEP_COMPLETED")


def test_without_debug_nobody_is_blamed():
    trainer = make_trainer(debug=False)
    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, lambda: trainer.model["fc1"].bias.detach().zero_())
    trainer.run([0, 0], max_epochs=1)
    assert not trainer.model["fc1"].bias.any()


def test_watched_handlers_get_their_arguments_and_can_be_removed():
    trainer, seen = make_trainer(), []

    def note(engine, text, *, times):
        seen.append((engine is trainer, text * times))

    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, note, "a", times=2)
    trainer.run([0], max_epochs=1)
    assert seen == [(True, "aa")]
    assert trainer.has_event_handler(note, WeightEvents.UPDATE_COMPLETED)
    trainer.remove_event_handler(note, WeightEvents.UPDATE_COMPLETED)
    trainer.run([0], max_epochs=2)
    assert len(seen) == 1


def test_plugins_can_be_detached_while_watched():
    plugin = Decay(0.5)
    trainer = make_trainer(plugin)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: trainer.detach(plugin))
    trainer.run([0], max_epochs=3)
    assert trainer.plugins == ()


CORRECT = [
    *[KaimingNormal(), L2(0.1), L1(0.01, mode="decoupled"), L1(0.01, mode="proximal"), Centralize(), ClipNorm(0.5)],
    *[Perturb(0.01), Decay(0.01, every=2), MaxNorm(0.8, where="fc1.weight"), EMA(0.9), WeightHistograms()],
    MaxNorm(0.8, where="fc2.weight", mode="forward"),
]
MIXED = [plugin for plugin in CORRECT if getattr(plugin, "mode", "loss") in ("loss", "project", "forward")]


@pytest.mark.parametrize("plugins", [[], CORRECT[:-1], MIXED], ids=["none", "every mode", "with forward"])
def test_a_correct_run_raises_nothing_and_ends_bit_identical(plugins):
    def ended(debug):
        trainer = make_trainer(*plugins, debug=debug)
        trainer.run([0] * 5, max_epochs=2)
        return trainer.model.state_dict(), trainer.state_dict()["weightsmith"]["plugins"].get("EMA", {})

    (weights, means), (watched_weights, watched_means) = ended(False), ended(True)
    assert list(weights) == list(watched_weights)
    assert [name for name in weights if not torch.equal(weights[name], watched_weights[name])] == []
    assert [name for name in means if not torch.equal(means[name]["mean"], watched_means[name]["mean"])] == []


def test_sparse_gradients_are_no_trouble():
    words = nn.Embedding(4, 3, sparse=True)
    optimizer = torch.optim.SGD(words.parameters(), lr=0.1)
    lookup = torch.tensor([1, 1, 2])
    trainer = Trainer(
        words, optimizer, step=lambda t, b: t.update(words(lookup).sum()), plugins=[MaxNorm(9.0)], debug=True
    )
    before = words.weight.detach().clone()
    trainer.run([0], max_epochs=1)
    torch.testing.assert_close(words.weight.detach(), before - 0.1 * torch.tensor([[0.0], [2.0], [1.0], [0.0]]))
