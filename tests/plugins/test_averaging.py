"""Averages against torch's own, with batch norm and validation."""

import copy

import pytest
import torch
import weightsmith_plugins as w
from ignite.engine import Events
from ignite.metrics import Loss
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, update_bn
from weightsmith import ConfigurationError, Constraint, Trainer, WeightEvents

BATCHES = [(torch.randn(16, 4, generator=torch.Generator().manual_seed(s)), torch.arange(16) % 3) for s in range(5)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def trained(*plugins, epochs=4):
    model = network()
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), plugins=plugins)
    theirs = AveragedModel(model)

    def follow():
        if trainer.state.update > 6 and trainer.state.update % 2 == 0:
            theirs.update_parameters(model)

    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, follow)
    if epochs:
        trainer.run(BATCHES, max_epochs=epochs)
    return model, trainer, theirs


def test_swa_is_torchs_with_its_batch_norm_statistics():
    model, trainer, theirs = trained(w.SWA(after=6, every=2))
    live = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    update_bn(BATCHES, theirs)
    with trainer.averaged(statistics_from=BATCHES):
        for name, tensor in theirs.module.state_dict().items():
            assert torch.allclose(model.state_dict()[name].float(), tensor.float(), atol=1e-5), name
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in live.items())


def test_without_batches_the_statistics_are_those_of_the_weights_in_training():
    model, trainer, _ = trained(w.EMA(0.9))
    live = model[1].running_mean.clone()
    with trainer.averaged():
        assert torch.equal(model[1].running_mean, live)


def test_validation_sees_the_means_and_training_does_not():
    model, trainer, _ = trained(w.SWA(), epochs=0)
    loss = Loss(nn.CrossEntropyLoss())
    found = []
    trainer.validate_on(BATCHES, {"averaged": loss}, averaged=True, statistics_from=BATCHES)

    def compare():
        with trainer.averaged(statistics_from=BATCHES):
            found.append(trainer.evaluate(BATCHES, {"loss": Loss(nn.CrossEntropyLoss())})["loss"])
        assert trainer.state.metrics["averaged"] == pytest.approx(found[-1])

    trainer.add_event_handler(Events.EPOCH_COMPLETED, compare)
    trainer.run(BATCHES, max_epochs=3)
    plain, _, _ = trained(w.SWA(), epochs=3)
    assert len(found) == 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_means_are_saved_under_the_weights_names():
    _, trainer, _ = trained(w.SWA())
    saved = trainer.state_dict()["weightsmith"]["plugins"]["weightsmith_plugins.SWA"]["memory"]
    assert set(saved) == {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}
    assert saved["0.weight"]["mean"].shape == (6, 4)


def test_before_the_first_weight_there_is_no_mean():
    _, trainer, _ = trained(w.SWA(after=1000), epochs=1)
    with pytest.raises(ConfigurationError, match=r"no mean of '0\.weight' yet"), trainer.averaged():
        pass


def linears():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))


def trainer_of(model, *plugins, momentum=0.9, **settings):
    held = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(held, lr=0.1, momentum=momentum)
    return Trainer(model, optimizer, nn.CrossEntropyLoss(), plugins=plugins, **settings)


def everything_of(trainer):
    """All that looking must not change, copied."""
    tensors = {**dict(trainer.model.named_parameters()), **dict(trainer.model.named_buffers())}
    for parameter, state in trainer.optimizers["optimizer"].state.items():
        tensors |= {f"{id(parameter)} {name}": value for name, value in state.items() if torch.is_tensor(value)}
    for label, state in trainer.state_dict()["weightsmith"]["plugins"].items():
        for weight, memory in state.get("memory", {}).items():
            tensors |= {f"{label} {weight} {entry}": value for entry, value in memory.items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_unchanged(trainer, before):
    after = everything_of(trainer)
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(after[name], before[name])] == []


def test_weights_that_are_not_lent_stay_as_they_are():
    trainer = trainer_of(linears(), w.EMA(0.5, where="0"), w.MaxNorm(0.1, where="1.weight", every=100))
    trainer.run(BATCHES)
    before = everything_of(trainer)
    with trainer.averaged():
        assert torch.equal(trainer.model[1].weight, before["1.weight"])
        assert not torch.equal(trainer.model[0].weight, before["0.weight"])
    assert_unchanged(trainer, before)


class Counting(Constraint):
    """Remembers how often it was applied."""

    def init(self, weight, site):
        return {"count": torch.tensor(0.0)}

    def project(self, weight, site):
        return weight.clamp(-0.1, 0.1), {"count": site.state["count"] + 1}


def test_looking_changes_neither_momentum_nor_memory():
    plugins = w.MaxNorm(0.1, where="0.weight", momentum="tangent"), Counting(where="1.weight"), w.EMA(0.5)
    trainer = trainer_of(linears(), *plugins)
    trainer.run(BATCHES)
    before = everything_of(trainer)
    with trainer.averaged():
        assert trainer.model[0].weight.norm(dim=1).max() <= 0.1 + 1e-6
        assert trainer.model[1].weight.abs().max() <= 0.1
    assert_unchanged(trainer, before)


def test_only_constraints_in_force_are_enforced_on_the_means():
    late, early = w.MaxNorm(0.1, where="0.weight", after=1000), w.MaxNorm(0.1, where="1.weight", every=3)
    trainer = trainer_of(linears(), w.EMA(0.5), late, early)
    model, large = trainer.model, torch.full((6, 4), 2.0)

    def restart():
        with torch.no_grad():
            model[0].weight.copy_(large)  # the constraint at the start is past

    trainer.add_event_handler(Events.EPOCH_STARTED(once=1), restart)
    trainer.run(BATCHES)
    mean = trainer.state_dict()["weightsmith"]["plugins"]["weightsmith_plugins.EMA"]["memory"]["0.weight"]["mean"]
    with trainer.averaged():
        assert torch.equal(model[0].weight, mean)
        assert model[1].weight.norm(dim=1).max() <= 0.1 + 1e-6


class Leaky:
    """Batches of which the third raises."""

    def __iter__(self):
        yield from BATCHES[:2]
        raise OSError("lost")


def norms_network():
    torch.manual_seed(0)
    layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
    model = nn.Sequential(*layers)
    parametrizations.spectral_norm(model[5])
    return model


def modes_of(model):
    return [module.training for module in model.modules()]


def test_statistics_are_renewed_where_they_are_trained_and_all_comes_back():
    trainer = trainer_of(norms_network(), w.EMA(0.5))
    frozen = trainer.model[1]
    trainer.model.train()
    frozen.eval()
    trainer.run(BATCHES)
    before, modes, mean = everything_of(trainer), modes_of(trainer.model), frozen.running_mean.clone()
    with trainer.averaged(statistics_from=BATCHES):
        assert torch.equal(frozen.running_mean, mean)
        assert not torch.equal(trainer.model[4].running_mean, before["4.running_mean"])
        assert modes_of(trainer.model) == modes
    assert_unchanged(trainer, before)
    assert modes_of(trainer.model) == modes


def test_statistics_that_fail_leave_everything_as_it_was():
    trainer = trainer_of(norms_network(), w.EMA(0.5))
    trainer.run(BATCHES)
    before, modes = everything_of(trainer), modes_of(trainer.model)
    with pytest.raises(OSError, match="lost"), trainer.averaged(statistics_from=Leaky()):
        pass
    once = iter(BATCHES)
    with trainer.averaged(statistics_from=once):
        pass
    with pytest.raises(ConfigurationError, match="gave no batch"), trainer.averaged(statistics_from=once):
        pass
    assert_unchanged(trainer, before)
    assert [trainer.model[i].momentum for i in (1, 4)] == [0.1, 0.1]
    assert modes_of(trainer.model) == modes


def test_statistics_of_nothing_are_told(caplog):
    trainer = trainer_of(linears(), w.EMA(0.5))
    trainer.run(BATCHES)
    with trainer.averaged(statistics_from=BATCHES):
        assert "no batch norm in training mode" in caplog.text


def test_inside_an_update_the_means_of_all_optimizers_are_lent():
    models = {"first": nn.Linear(4, 3), "second": nn.Linear(4, 3)}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.1) for name, model in models.items()}

    def step(trainer, batch):
        for name, model in models.items():
            trainer.update(nn.functional.cross_entropy(model(batch[0]), batch[1]), name)

    trainer = Trainer(models, optimizers, step=step, plugins=[w.EMA(0.9)])
    lent = []

    def look():
        live = {name: model.weight.detach().clone() for name, model in models.items()}
        with trainer.averaged():
            lent.append({name for name, model in models.items() if not torch.equal(model.weight, live[name])})
        assert all(torch.equal(model.weight, live[name]) for name, model in models.items())

    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED(every=3), look)
    trainer.run(BATCHES)
    assert lent == [{"first", "second"}] * 2


def test_weights_without_a_mean_do_not_stop_the_others():
    model = linears()
    head = torch.optim.SGD(model[1].parameters(), lr=0.1)
    trainer = Trainer(model, head, nn.CrossEntropyLoss(), plugins=[w.EMA(0.5)])
    trainer.run(BATCHES)
    live = model[1].weight.detach().clone()
    with trainer.averaged():
        assert not torch.equal(model[1].weight, live)
    assert torch.equal(model[1].weight, live)


def test_validation_before_the_first_mean_is_of_the_live_weights_and_says_so_once(caplog):
    trainer = trainer_of(linears(), w.SWA(after="2 epochs"))
    trainer.validate_on(BATCHES, {"loss": Loss(nn.CrossEntropyLoss())}, averaged=True)
    found = []

    def compare():
        live = trainer.evaluate(BATCHES, {"loss": Loss(nn.CrossEntropyLoss())})["loss"]
        found.append(trainer.state.metrics["loss"] == pytest.approx(live, abs=1e-7))

    trainer.add_event_handler(Events.EPOCH_COMPLETED, compare)
    trainer.run(BATCHES, max_epochs=4)
    assert found == [True, True, False, False]
    assert caplog.text.count("there is no mean yet") == 1


@pytest.mark.parametrize("event", ["STEP_COMPLETED", "WEIGHTS_EDITED", "UPDATE_COMPLETED"])
def test_evaluating_inside_an_update_in_half_precision_uses_the_weights_of_now(event):
    trainer = trainer_of(linears(), w.EMA(0.9), precision="bfloat16", momentum=0)
    found = []

    def loss():
        return trainer.evaluate(BATCHES, {"loss": Loss(nn.CrossEntropyLoss())})["loss"]

    def look():
        seen = [loss(), loss()]
        if trainer.state.update > 1:
            with trainer.averaged():
                seen += [loss()]
                means = trainer_of(copy.deepcopy(trainer.model), precision="bfloat16")
        else:
            seen, means = [seen[0], seen[0], seen[0]], trainer_of(copy.deepcopy(trainer.model), precision="bfloat16")
        live = trainer_of(copy.deepcopy(trainer.model), precision="bfloat16")
        torch.clear_autocast_cache()
        metrics = {"loss": Loss(nn.CrossEntropyLoss())}
        wanted = [live.evaluate(BATCHES, metrics)["loss"], means.evaluate(BATCHES, metrics)["loss"]]
        found.append((seen[0] - wanted[0], seen[1] - wanted[0], seen[2] - wanted[1]))

    trainer.add_event_handler(WeightEvents[event], look)
    trainer.run(BATCHES)
    assert len(found) >= 5
    assert set(found) == {(0, 0, 0)}


def test_evaluating_in_the_step_leaves_no_casts_without_a_graph():
    model, found = linears(), []

    def step(trainer, batch):
        trainer.evaluate(BATCHES, {"loss": Loss(nn.CrossEntropyLoss())})
        trainer.update(nn.functional.cross_entropy(model(batch[0]), batch[1]))
        found.append(model[0].weight.grad is not None)

    Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), step=step, precision="bfloat16").run(BATCHES)
    assert found == [True] * 5
