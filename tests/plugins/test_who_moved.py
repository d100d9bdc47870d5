"""Who moved this weight, and who turned its gradient: measured around every plugin, and added up by hand."""

import math

import pytest
import torch
import weightsmith_plugins as w
from ignite.engine import Events
from torch import nn
from weightsmith import Plugin, Trainer, WeightEvents
from weightsmith_plugins.probes.updates import SampledUpdates

BATCHES = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(3)]


def trained(plugins, epochs=1, optimizer=torch.optim.SGD, step=None, data=BATCHES, **options):
    """Tag to value of the last epoch, and the trainer."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    trainer = Trainer(model, optimizer(model.parameters(), lr=0.1), nn.MSELoss(), plugins=plugins, seed=0, **options)
    found = {}
    trainer.add_event_handler(
        WeightEvents.MEASURED, lambda engine: found.update({k: float(v) for k, v in tags(engine).items()})
    )
    trainer.run(data, max_epochs=epochs)
    return found, trainer


def tags(engine):
    return engine.state.measurements.values


def norm(tensor):
    return tensor.detach().double().norm().item()


def test_each_move_is_charged_to_who_made_it():
    """SGD moves by lr · g, decay by its rate, clamping by what it cuts off: each from the weights seen in between."""
    seen = {}

    def look(name):
        return lambda engine: seen.__setitem__(name, engine.model.weight.detach().clone())

    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    plugins = [w.PluginEffect(), w.Decay(0.1, where="weight"), w.Clamp(-0.2, 0.2), w.ClipNorm(0.5)]
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), plugins=plugins)
    found = {}
    trainer.add_event_handler(WeightEvents.MEASURED, lambda engine: found.update(tags(engine)))
    trainer.add_event_handler(WeightEvents.GRADIENTS_READY, look("before"))
    trainer.add_event_handler(WeightEvents.STEP_COMPLETED, look("decayed"))  # handlers follow plugins
    trainer.add_event_handler(WeightEvents.WEIGHTS_EDITED, look("clamped"))
    trainer.run(BATCHES, max_epochs=2)
    stepped = seen["before"] - 0.1 * model.weight.grad
    assert float(found["effect/weight/optimizer"]) == pytest.approx(norm(stepped - seen["before"]), rel=1e-4)
    assert float(found["effect/weight/Decay"]) == pytest.approx(norm(seen["decayed"] - stepped), rel=1e-4)
    assert float(found["effect/weight/Clamp"]) == pytest.approx(norm(seen["clamped"] - seen["decayed"]), rel=1e-4)
    assert set(found) == {f"effect/weight/{who}" for who in ("optimizer", "Decay", "Clamp")} | {"effect/bias/optimizer"}


@pytest.mark.parametrize("penalty", [w.L2(0.1, mode="decoupled"), w.L2(0.1, mode="proximal")])
def test_penalties_that_shrink_the_weight_are_told_from_the_step(penalty):
    found, trainer = trained([penalty, w.PluginEffect()], data=BATCHES[:1])
    torch.manual_seed(0)
    start = nn.Linear(3, 2).weight
    step = 0.1 * trainer.model.weight.grad
    assert found["effect/weight/optimizer"] == pytest.approx(norm(step), rel=1e-4)
    assert found["effect/weight/L2"] == pytest.approx(norm(trainer.model.weight - start + step), rel=1e-4)


def test_moves_of_an_epoch_add_up():
    """Decay shrinks by a tenth every second update; the last one of the epoch is none of these."""
    plugins = [w.Decay(0.1, every=2), w.Freeze()]
    once, _ = trained([*plugins, w.PluginEffect()])
    whole, _ = trained([*plugins, w.PluginEffect("epoch")])
    torch.manual_seed(0)
    start = nn.Linear(3, 2)
    assert "effect/weight/Decay" not in once
    assert whole["epoch_effect/weight/Decay"] == pytest.approx(0.1 * norm(start.weight), rel=1e-5)
    assert once["effect/weight/optimizer"] == whole["epoch_effect/weight/optimizer"] == 0


def test_a_second_plugin_of_a_class_has_a_name_of_its_own_and_equals_are_apart():
    found, _ = trained([w.Decay(0.1), w.Decay(0.2), w.PluginEffect(where="weight"), w.Freeze()], data=BATCHES[:1])
    torch.manual_seed(0)
    size = norm(nn.Linear(3, 2).weight)
    assert found["effect/weight/Decay"] == pytest.approx(0.1 * size, rel=1e-5)
    assert found["effect/weight/Decay.1"] == pytest.approx(0.2 * 0.9 * size, rel=1e-5)


class Skips(Plugin):
    order = 30

    def subscriptions(self, trainer):
        yield WeightEvents.GRADIENTS_COMPUTED, trainer.skip_update


class Mover(Plugin):
    """A plugin without weights of its own that writes where it likes."""

    def subscriptions(self, trainer):
        yield WeightEvents.STEP_COMPLETED, lambda: move(trainer)


@torch.no_grad()
def move(trainer):
    trainer.model.bias.add_(3.0)


def test_a_plugin_that_selects_no_weights_is_seen_where_it_writes():
    found, _ = trained([Mover(), w.PluginEffect(), w.Freeze()])
    assert found["effect/bias/Mover"] == pytest.approx(3 * math.sqrt(2), rel=1e-5)
    assert "effect/weight/Mover" not in found


def test_a_plugin_that_only_looks_moves_nothing_and_does_not_split_the_step():
    """LBFGS moves the weights many times in a step, with plugins in between."""
    alone, _ = trained([w.PluginEffect()], optimizer=torch.optim.LBFGS)
    found, _ = trained([w.Losses(), w.PluginEffect(), w.JSONLines("/dev/null")], optimizer=torch.optim.LBFGS)
    effects = {tag: value for tag, value in found.items() if tag.startswith("effect")}
    assert effects == alone
    assert set(effects) == {"effect/weight/optimizer", "effect/bias/optimizer"}


def test_the_step_of_an_optimizer_that_evaluates_repeatedly_is_one_move():
    found, trainer = trained([w.PluginEffect()], optimizer=torch.optim.LBFGS, data=BATCHES[:1])
    torch.manual_seed(0)
    start = nn.Linear(3, 2)
    assert found["effect/weight/optimizer"] == pytest.approx(norm(trainer.model.weight - start.weight), rel=1e-4)


def test_a_plugin_that_acts_elsewhere_is_seen_there():
    plugins = [w.Decay(0.5, at=Events.EPOCH_COMPLETED), w.ScaleGradient(0.0), w.L2(0.1), w.Freeze()]
    for of, group in (("update", "effect"), ("epoch", "epoch_effect")):
        found, _ = trained([*plugins, w.PluginEffect(of)])
        torch.manual_seed(0)
        assert found[f"{group}/weight/Decay"] == pytest.approx(0.5 * norm(nn.Linear(3, 2).weight), rel=1e-5)


def test_sums_of_an_epoch_outlast_a_plugin_that_comes_or_goes():
    def sums(change):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        plugins = [w.Decay(0.01), w.PluginEffect("epoch"), w.DormantUnits(), w.UpdateRatio(), w.Losses()]
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), plugins=plugins)
        found = {}
        trainer.add_event_handler(WeightEvents.MEASURED, lambda engine: found.update(tags(engine)))
        if change:
            trainer.on(Events.ITERATION_COMPLETED(once=2))(lambda: trainer.attach(w.LearningRates()))
            trainer.on(Events.ITERATION_COMPLETED(once=3))(lambda: trainer.detach(w.LearningRates()))
        trainer.run(BATCHES)
        return {tag: float(value) for tag, value in found.items()}

    assert sums(change=True) == sums(change=False)


def test_an_optimizer_that_is_updated_now_and_then_is_watched_at_its_first_update_of_the_epoch():
    models = {"often": nn.Linear(2, 2), "seldom": nn.Linear(2, 2)}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.1) for name, model in models.items()}
    changes = {}

    def step(trainer, batch):
        trainer.update(models["often"](batch).square().mean(), optimizer="often")
        if trainer.state.iteration % 4 in (1, 2):
            before = models["seldom"].weight.detach().clone()
            trainer.update(models["seldom"](batch).square().mean(), optimizer="seldom")
            changes[trainer.state.iteration] = norm(models["seldom"].weight - before) / norm(before)

    plugins = [w.UpdateRatio(), w.PluginEffect(), w.GradientNorms(), w.L2(0.1)]
    trainer = Trainer(models, optimizers, step=step, plugins=plugins)
    found = {}
    trainer.add_event_handler(WeightEvents.MEASURED, lambda engine: found.update(tags(engine)))
    trainer.run([torch.randn(3, 2) for _ in range(4)], max_epochs=2)
    assert float(found["update_ratio/seldom/weight"]) == pytest.approx(changes[5], rel=1e-4)
    assert "effect/seldom/weight/optimizer" in found
    assert "gradient_norm_after/seldom/weight/L2" in found


@pytest.mark.parametrize("probe", [w.UpdateRatio(), w.PluginEffect(), w.GradientNorms()])
def test_the_weights_are_looked_at_in_the_first_and_the_last_update_only(probe, monkeypatch):
    looked = []
    sampled = SampledUpdates.includes_this
    monkeypatch.setattr(SampledUpdates, "includes_this", lambda self: looked.append(sampled(self)) or looked[-1])
    trained([probe, w.L2(0.1)], data=BATCHES * 3, epochs=2)
    asked = len(looked) // 18
    assert looked == ([True] * asked + [False] * asked * 7 + [True] * asked) * 2


@pytest.mark.parametrize("probe", [w.UpdateRatio(), w.PluginEffect()])
def test_an_update_that_is_skipped_is_none(probe):
    found, trainer = trained([probe, Skips()])
    assert trainer.state.updates == {"optimizer": 0}
    assert found == {}


def test_two_optimizers_are_each_charged_for_their_own_weights():
    models = {"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.1) for name, model in models.items()}

    def step(trainer, batch):
        for name, model in models.items():
            trainer.update(model(batch).square().mean(), optimizer=name)

    trainer = Trainer(models, optimizers, step=step, plugins=[w.PluginEffect(), w.MaxNorm(0.1, where="one")])
    found = {}
    trainer.add_event_handler(WeightEvents.MEASURED, lambda engine: found.update(tags(engine)))
    trainer.run([torch.randn(3, 2)] * 2)
    for name, model in models.items():
        wanted = norm(0.1 * model.weight.grad)
        assert float(found[f"effect/{name}/weight/optimizer"]) == pytest.approx(wanted, rel=1e-4)
    assert "effect/one/weight/MaxNorm" in found
    assert "effect/two/weight/MaxNorm" not in found


def test_watching_changes_nothing():
    plugins = [w.L2(0.1), w.ClipNorm(0.5), w.Perturb(0.01), w.MaxNorm(0.4)]
    _, watched = trained([*plugins, w.PluginEffect("epoch"), w.GradientNorms(), w.DormantUnits()], epochs=3)
    _, alone = trained(plugins, epochs=3)
    for mine, other in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.LBFGS])
def test_the_gradient_from_the_backward_pass_to_the_optimizer(optimizer):
    plugins = [w.GradientNorms(), w.ClipNorm(0.01), w.ScaleGradient(0.5, where="weight"), w.L2(0.3)]
    found, trainer = trained(plugins, optimizer=optimizer)
    after = {tag.rpartition("/")[2]: value for tag, value in found.items() if tag.startswith("gradient_norm_after/w")}
    assert set(after) == {"backward", "L2", "ClipNorm", "ScaleGradient"}
    assert after["ScaleGradient"] == pytest.approx(after["ClipNorm"] / 2, rel=1e-5)
    assert after["ScaleGradient"] == pytest.approx(norm(trainer.model.weight.grad), rel=1e-5)
    assert found["gradient_norm/weight"] == pytest.approx(after["ScaleGradient"], rel=1e-5)
    bias = found["gradient_norm_after/bias/ClipNorm"]
    assert math.hypot(after["ClipNorm"], bias) == pytest.approx(0.01, rel=1e-4)
    assert found["gradient_norm_total/optimizer"] == pytest.approx(math.hypot(after["ScaleGradient"], bias), rel=1e-4)


def test_what_the_backward_pass_gave_is_the_losss_gradient():
    found, _ = trained([w.GradientNorms(), w.L2(0.3), w.Sign()], data=BATCHES[:1])
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    inputs, targets = BATCHES[0]
    nn.MSELoss()(model(inputs), targets).backward()
    assert found["gradient_norm_after/weight/backward"] == pytest.approx(norm(model.weight.grad), rel=1e-5)
    charged = model.weight.grad + 0.6 * model.weight
    assert found["gradient_norm_after/weight/L2"] == pytest.approx(norm(charged), rel=1e-5)
    assert found["gradient_norm_after/weight/Sign"] == pytest.approx(math.sqrt(6), rel=1e-5)


def test_of_a_second_evaluation_the_gradient_shows_as_what_asked_for_it_left_it():
    plugins = [w.GradientNorms(), w.SharpnessAware(0.5), w.L2(0.3), w.ScaleGradient(0.5)]
    found, _ = trained(plugins, data=BATCHES[:1])
    plain, _ = trained([w.GradientNorms(), w.L2(0.3)], data=BATCHES[:1])
    for who in ("backward", "L2"):
        tag = f"gradient_norm_after/weight/{who}"
        assert found[tag] == pytest.approx(plain[tag], rel=1e-6)
    sharp = found["gradient_norm_after/weight/SharpnessAware"]
    assert sharp > 1.1 * found["gradient_norm_after/weight/L2"]
    assert found["gradient_norm/weight"] == pytest.approx(sharp / 2, rel=1e-6)


def test_where_nothing_edits_there_is_no_path():
    found, _ = trained([w.GradientNorms(), w.MaxNorm(1.0)])
    assert set(found) == {"gradient_norm/weight", "gradient_norm/bias", "gradient_norm_total/optimizer"}
    found, _ = trained([w.GradientNorms(by_plugin=False), w.ClipNorm(1.0)])
    assert not any(tag.startswith("gradient_norm_after") for tag in found)


# -------------------------------------------------------------------- the events


def test_every_handler_of_a_plugin_is_announced_while_somebody_listens():
    log = []
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    trainer = Trainer(
        model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), plugins=[w.L2(0.1), w.MaxNorm(1.0)]
    )

    def note(word):
        return lambda engine: log.append((word, engine.state.acting.name, engine.state.acting.event))

    started = trainer.add_event_handler(WeightEvents.PLUGIN_STARTED, note("started"))
    completed = trainer.add_event_handler(WeightEvents.PLUGIN_COMPLETED, note("completed"))
    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, lambda engine: log.append(engine.state.acting))
    trainer.run(BATCHES[:1])
    words = ("started", "completed")
    assert log == [
        *((word, "MaxNorm", "WEIGHTS_EDITED") for word in words),
        *((word, "L2", "GRADIENTS_COMPUTED") for word in words),
        *((word, "MaxNorm", "WEIGHTS_EDITED") for word in words),
        None,
    ]
    log.clear()
    started.remove()
    completed.remove()
    trainer.run(BATCHES[:1])
    assert log == [None]


def test_the_event_in_progress_is_still_the_one_outside():
    model = nn.Linear(3, 2)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), plugins=[Skips()])
    trainer.add_event_handler(WeightEvents.PLUGIN_STARTED, lambda: None)
    trainer.run(BATCHES)
    assert trainer.state.updates == {"optimizer": 0}


# -------------------------------------------------------------------- dormant units


class Half(nn.Module):
    """Four units, of which the last two never fire."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
        with torch.no_grad():
            self.hidden.bias.copy_(torch.tensor([50.0, 50.0, -50.0, -50.0]))

    def forward(self, inputs):
        return self.out(self.hidden(inputs).relu())


def test_units_that_never_fire_are_dormant_whatever_the_penalty():
    torch.manual_seed(0)
    model = Half()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    plugins = [w.L2(0.1), w.DormantUnits(), w.DormantUnits(where="out.bias")]
    trainer = Trainer(model, optimizer, nn.MSELoss(), plugins=plugins, accumulate=2)
    found = {}
    trainer.add_event_handler(WeightEvents.MEASURED, lambda engine: found.update(tags(engine)))
    trainer.run(BATCHES, max_epochs=2)
    assert {tag: float(value) for tag, value in found.items()} == {
        "dormant_units/hidden/weight": 0.5,
        "dormant_units/out/weight": 0.0,
        "dormant_units/out/bias": 0.0,
    }


def test_a_layer_that_gets_no_gradient_at_all_is_dormant():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = Trainer(model, optimizer, nn.MSELoss(), plugins=[w.DormantUnits(where="0.weight")])
    found = {}
    trainer.add_event_handler(WeightEvents.MEASURED, lambda engine: found.update(tags(engine)))
    trainer.run(BATCHES)
    assert float(found["dormant_units/0/weight"]) == 1.0
