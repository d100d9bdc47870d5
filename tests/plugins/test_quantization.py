"""Quantization against torch's own fake quantization, and real integers."""

import io

import pytest
import torch
import weightsmith_plugins as w
from torch import nn
from weightsmith import ConfigurationError, Trainer, piecewise
from weightsmith_plugins.quantization import to_int8


def trained(model, plugin, inputs, epochs=5):
    def step(trainer, batch):
        return trainer.update(lambda: (model(batch) - 1).square().mean())

    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.05), step=step, plugins=[plugin], seed=0)
    trainer.run([inputs] * 4, max_epochs=epochs)
    return trainer


def stored(model):
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_it_is_torchs_per_channel_fake_quantization_gradient_included(bits):
    weight = torch.randn(6, 10, requires_grad=True)
    most = 2 ** (bits - 1) - 1
    scales = weight.detach().abs().amax(1) / most
    twin = weight.detach().clone().requires_grad_()
    wanted = torch.fake_quantize_per_channel_affine(twin, scales, torch.zeros(6), 0, -most, most)
    found = w.FakeQuantize(bits)(weight)
    assert torch.allclose(found, wanted, atol=1e-6)
    slope = torch.randn(6, 10)
    (found * slope).sum().backward()
    (wanted * slope).sum().backward()
    assert torch.equal(weight.grad, twin.grad)


def test_the_least_squares_scale_is_no_worse_than_the_widest():
    torch.manual_seed(0)
    weight = torch.randn(8, 200)
    errors = [(w.FakeQuantize(3, observer=o)(weight) - weight).square().sum(1) for o in ("minmax", "mse")]
    assert (errors[1] <= errors[0]).all()
    assert errors[1].sum() < 0.8 * errors[0].sum()


def test_bits_follow_a_schedule():
    model = nn.Linear(50, 4, bias=False)
    trainer = trained(model, w.FakeQuantize(piecewise({0: 8, 10: 2})), torch.randn(8, 50))
    assert len(model.weight.detach()[0].unique()) <= 3
    assert len(trainer.weights()["weight"].detach()[0].unique()) == 50


@pytest.mark.parametrize("per_unit", [True, False])
def test_real_integers_are_exactly_the_weights_that_were_trained(per_unit):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 4))
    inputs = torch.randn(32, 128)
    trained_ = trained(model, w.FakeQuantize(8, per_unit), inputs)
    integers = to_int8(trained_)
    assert integers[0].weight().dtype is torch.qint8
    assert torch.allclose(integers[0].weight().dequantize(), model[0].weight, atol=1e-7)
    wanted = model(inputs).detach()
    assert (integers(inputs) - wanted).abs().max() <= 0.05 * wanted.abs().max()  # activations have 8 bits as well
    plain = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 4))
    assert stored(integers) < 0.35 * stored(plain)


def test_convolutions_become_integers_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    inputs = torch.randn(8, 4, 6, 6)
    integers = to_int8(trained(model, w.FakeQuantize(8), inputs))
    assert torch.allclose(integers[0].weight().dequantize(), model[0].weight, atol=1e-7)
    wanted = model(inputs).detach()
    assert (integers(inputs) - wanted).abs().max() <= 0.05 * wanted.abs().max()


def test_what_cannot_be_made_of_integers_is_named():
    plain = nn.Linear(4, 2)
    trainer = Trainer(plain, torch.optim.SGD(plain.parameters(), lr=0.1), nn.MSELoss())
    with pytest.raises(ConfigurationError, match="no layer has its weight under a FakeQuantize"):
        to_int8(trainer)
    model = nn.Sequential(nn.ConvTranspose1d(3, 2, 2))
    with pytest.raises(ConfigurationError, match="'0' is a"):
        to_int8(trained(model, w.FakeQuantize(8), torch.randn(2, 3, 5), epochs=1))
