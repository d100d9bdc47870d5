"""Layer-sequential unit variance: every layer's outputs have variance 1, measured on their own."""

import math

import pytest
import torch
from torch import nn
from weightsmith import ConfigurationError, Trainer
from weightsmith_plugins import LSUV, Constant


def fixed_inputs():
    return torch.randn(64, 20, generator=torch.Generator().manual_seed(7)) * 3 + 1


class Net(nn.Module):
    """Its layers are declared in another order than they are computed."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(30, 5)
        self.first = nn.Linear(20, 30)
        self.middle = nn.utils.parametrizations.weight_norm(nn.Linear(30, 30))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.last(self.dropout(torch.relu(self.middle(torch.relu(self.first(x))))))


def variances(model, inputs):
    found = {}
    hooks = [
        layer.register_forward_hook(lambda m, i, o, name=name: found.update({name: o.var().item()}))
        for name, layer in model.named_children()
        if isinstance(layer, nn.Linear)
    ]
    model.eval()
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return found


def start(model, plugin, data, **options):
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.MSELoss(), plugins=[plugin], **options)
    trainer.run(data)
    return trainer


def batches():
    torch.manual_seed(3)
    return [(torch.randn(64, 20) * 5, torch.randn(64, 5)) for _ in range(2)]


def test_every_layers_outputs_have_unit_variance_on_the_first_batch():
    torch.manual_seed(0)
    model, data = Net(), batches()
    start(model, LSUV(tolerance=1e-3), data)
    assert variances(model, data[0][0]) == pytest.approx({"first": 1, "middle": 1, "last": 1}, abs=2e-3)


def test_the_direction_of_the_weights_is_the_orthogonal_start():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 8, bias=False), nn.Linear(8, 5, bias=False))
    start(model, LSUV(), batches())
    for layer in model:
        gram = layer.weight.detach() @ layer.weight.detach().T
        assert torch.allclose(gram / gram[0, 0], torch.eye(len(gram)), atol=1e-4)


def test_the_batch_may_come_from_a_function_or_a_file(tmp_path):
    torch.save(fixed_inputs(), tmp_path / "inputs.pt")
    for batch in (f"{__name__}.fixed_inputs", str(tmp_path / "inputs.pt")):
        torch.manual_seed(0)
        model = Net()
        start(model, LSUV(batch=batch), batches())
        assert variances(model, fixed_inputs()) == pytest.approx({"first": 1, "middle": 1, "last": 1}, abs=0.02)


def test_taking_a_batch_changes_neither_the_order_of_the_data_nor_the_modules_modes():
    class Noted(list):
        pass

    def run(plugins):
        torch.manual_seed(0)
        model, seen = Net(), []
        model.dropout.eval()
        dataset = torch.utils.data.TensorDataset(torch.randn(40, 20), torch.randn(40, 5))
        loader = torch.utils.data.DataLoader(dataset, batch_size=10, shuffle=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

        def step(trainer, batch):
            seen.append(batch[0].clone())
            assert not model.dropout.training
            return trainer.update((model(batch[0]) - batch[1]).square().mean())

        torch.manual_seed(1)
        Trainer(model, optimizer, step=step, plugins=plugins).run(loader)
        return torch.cat(seen)

    assert torch.equal(run([LSUV()]), run([]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: start(Net(), LSUV(), iter(batches())), "can be gone through only once"),
        (
            lambda: start(nn.Sequential(nn.Linear(20, 5)), LSUV(), [(torch.zeros(8, 20), torch.zeros(8, 5))]),
            "do not vary",
        ),
        (lambda: LSUV(tolerance=0.0), "tolerance must be above 0"),
    ],
)
def test_what_cannot_work_is_said(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make_zero_bias(make)


def make_zero_bias(make):
    original = nn.Linear.reset_parameters

    def zero_bias(self):
        original(self)
        nn.init.zeros_(self.bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "reset_parameters", zero_bias)
        make()


def test_a_layer_that_is_never_reached_is_named():
    model = Net()
    model.spare = nn.Linear(4, 4)
    with pytest.raises(ConfigurationError, match=r"does not reach the layer of 'spare\.weight'"):
        start(model, LSUV(), batches())


def test_it_keeps_the_scale_of_a_deep_network_where_a_constant_start_does_not():
    def depth(plugin):
        torch.manual_seed(0)
        layers = [layer for _ in range(20) for layer in (nn.Linear(20, 20), nn.Tanh())]
        model = nn.Sequential(*layers, nn.Linear(20, 5))
        start(model, plugin, batches())
        with torch.no_grad():
            return model(batches()[0][0]).std().item()

    assert depth(LSUV()) == pytest.approx(1.0, abs=0.01)
    assert not math.isclose(depth(Constant(0.05)), 1.0, abs_tol=0.5)
