"""Quantization against torch's own fake quantization, and real integers."""

import pytest
import torch
import weightsmith_plugins as w
from torch import nn
from torch.nn.utils import parametrizations
from weightsmith import ConfigurationError, Trainer, piecewise
from weightsmith_plugins.quantization import to_int8


def trained(model, plugins, inputs, epochs=5):
    def step(trainer, batch):
        return trainer.update(lambda: (model(batch) - 1).square().mean())

    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05),
        step=step,
        plugins=plugins if isinstance(plugins, list) else [plugins],
        seed=0,
    )
    trainer.run([inputs] * 4, max_epochs=epochs)
    return trainer


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
    assert w.stored_bytes(integers) < 0.35 * w.stored_bytes(plain)


def test_convolutions_become_integers_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    inputs = torch.randn(8, 4, 6, 6)
    integers = to_int8(trained(model, w.FakeQuantize(8), inputs), [inputs])
    assert torch.allclose(integers[0][1].weight().dequantize(), model[0].weight, atol=1e-7)
    wanted = model(inputs).detach()
    assert (integers(inputs) - wanted).abs().max() <= 0.05 * wanted.abs().max()


def test_what_cannot_be_made_of_integers_is_named():
    plain = nn.Linear(4, 2)
    trainer = Trainer(plain, torch.optim.SGD(plain.parameters(), lr=0.1), nn.MSELoss())
    with pytest.raises(ConfigurationError, match="no layer has its weight under a FakeQuantize"):
        to_int8(trainer)
    model = nn.Sequential(nn.ConvTranspose1d(3, 2, 2))
    with pytest.raises(ConfigurationError, match=r"'0\.weight' is in a ConvTranspose1d"):
        to_int8(trained(model, w.FakeQuantize(8), torch.randn(2, 3, 5), epochs=1))


def assert_integers_are_the_weights(integers, layer, atol=1e-7):
    assert torch.allclose(integers.weight().dequantize(), layer.weight.float(), atol=atol)


def test_the_scale_is_that_of_what_the_quantizer_is_given():
    torch.manual_seed(0)
    clamped, normed, torchs = (nn.Sequential(nn.Linear(16, 4)) for _ in range(3))
    inputs = torch.randn(8, 16)
    run = trained(clamped, [w.Clamp(-0.1, 0.1, mode="forward"), w.FakeQuantize()], inputs)
    assert_integers_are_the_weights(to_int8(run)[0], clamped[0])
    run = trained(normed, [w.WeightNorm(), w.FakeQuantize()], inputs)
    assert_integers_are_the_weights(to_int8(run)[0], normed[0])
    parametrizations.weight_norm(torchs[0])
    run = trained(torchs, w.FakeQuantize(), inputs)
    assert_integers_are_the_weights(to_int8(run)[0], torchs[0])


def test_what_stands_after_the_quantizer_is_refused():
    run = trained(nn.Linear(16, 4), [w.FakeQuantize(), w.Clamp(-0.1, 0.1, mode="forward")], torch.randn(8, 16))
    with pytest.raises(ConfigurationError, match=r"'weight'.*stands after"):
        to_int8(run)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_another_dtype_become_float32_with_the_same_integers(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 4)).to(dtype)
    inputs = torch.randn(8, 64, dtype=dtype)
    run = trained(model, w.FakeQuantize(where="0"), inputs)
    raw = run.weights()["0.weight"].detach()
    scales = raw.to(torch.promote_types(dtype, torch.float32)).abs().amax(1) / 127
    integers = to_int8(run)
    assert torch.allclose(integers[0].weight().q_per_channel_scales(), scales.double(), rtol=1e-7)
    assert torch.equal(integers[0].weight().int_repr(), (raw / scales[:, None]).round().to(torch.int8))
    found, wanted = integers(inputs.float()), model(inputs).detach().float()
    assert (found - wanted).abs().max() <= 0.1 * wanted.abs().max()


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.last = nn.Linear(8, 8)

    def forward(self, x):
        return self.last(self.encoder(self.recurrent(self.attention(x, x, x)[0])[0]))


def test_layers_that_stay_as_they_are_are_named_and_the_model_works(caplog):
    torch.manual_seed(0)
    model, inputs = Attentive(), torch.randn(3, 5, 8)
    integers = to_int8(trained(model, w.FakeQuantize(), inputs, epochs=1))
    names = (
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "recurrent.weight_hh_l0",
        "encoder.linear1.weight",
    )
    assert all(repr(name) in caplog.text for name in names)
    assert "'last.weight'" not in caplog.text
    with torch.no_grad():
        found, wanted = integers(inputs), model.eval()(inputs)
    assert (found - wanted).abs().max() <= 0.05 * wanted.abs().max()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_gradient_reaches_the_largest_weight_of_every_unit(bits):
    weight = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    w.FakeQuantize(bits)(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_a_scale_that_would_underflow_gives_numbers(observer):
    assert w.FakeQuantize(observer=observer)(torch.tensor([[1e-44, 0.0]])).abs().max() <= 1e-43


class Digits(nn.Module):
    """A convolutional network on scikit-learn's scanned digits, as people write it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2)
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.head(torch.relu(self.second(x)).flatten(1))


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    inputs = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    targets = torch.tensor(labels)
    torch.manual_seed(0)
    model = Digits()
    batches = [(inputs[i : i + 64], targets[i : i + 64]) for i in range(0, 1408, 64)]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    trainer = Trainer(model, optimizer, nn.CrossEntropyLoss(), plugins=[w.FakeQuantize(8)], seed=0)
    trainer.run(batches, max_epochs=25)
    return trainer, batches, inputs[1408:], targets[1408:]


def accuracy(model, inputs, targets):
    with torch.no_grad():
        return (model.eval()(inputs).argmax(1) == targets).float().mean().item()


def test_integers_recognise_digits_as_well_as_floats_in_less_room(digits):
    trainer, batches, inputs, targets = digits
    integers = w.to_int8(trainer, batches)
    assert all(layer.weight().dtype is torch.qint8 for layer in (integers.first[1], integers.second[1], integers.head))
    floats = accuracy(trainer.model, inputs, targets)
    assert floats > 0.9
    assert abs(accuracy(integers, inputs, targets) - floats) <= 0.01
    plain = Digits()
    assert w.stored_bytes(integers) < 0.6 * w.stored_bytes(plain)  # names and ranges have a size, too
    assert w.stored_bytes(integers.head) < 0.4 * w.stored_bytes(plain.head)


def test_convolutions_compute_with_the_weights_that_were_trained(digits):
    trainer, batches, inputs, _ = digits
    made = w.to_int8(trainer, batches).second[1]
    assert torch.allclose(made.weight().dequantize(), trainer.model.second.weight, atol=1e-7)
    x = torch.relu(trainer.model.first(inputs)).detach()
    wanted = trainer.model.second(x).detach()
    found = w.to_int8(trainer, batches).second(x)
    assert (found - wanted).norm() <= 0.05 * wanted.norm()


def test_convolutions_stay_as_they_are_where_no_batch_says_their_ranges(digits, caplog):
    trainer, _, inputs, targets = digits
    integers = w.to_int8(trainer)
    assert "'first.weight'" in caplog.text
    assert "give to_int8 batches" in caplog.text
    assert torch.equal(integers.first.weight, trainer.model.first.weight)
    assert integers.head.weight().dtype is torch.qint8
    assert abs(accuracy(integers, inputs, targets) - accuracy(trainer.model, inputs, targets)) <= 0.01
