"""Averages against torch's own, with batch norm and validation."""

import pytest
import torch
import weightsmith_plugins as w
from ignite.engine import Events
from ignite.metrics import Loss
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn
from weightsmith import ConfigurationError, Trainer, WeightEvents

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
    saved = trainer.state_dict()["weightsmith"]["plugins"]["weightsmith_plugins.SWA"]
    assert set(saved) == {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}
    assert saved["0.weight"]["mean"].shape == (6, 4)


def test_before_the_first_weight_there_is_no_mean():
    _, trainer, _ = trained(w.SWA(after=1000), epochs=1)
    with pytest.raises(ConfigurationError, match=r"no mean of '0\.weight' yet"), trainer.averaged():
        pass
