"""What a plugin's method is told of the weight in hand, and what it remembers of it."""

import pytest
import torch
from torch import nn
from weightsmith import GradientEditor, PluginContractError, Site, Trainer, WeightEditor
from weightsmith_plugins import MaxNorm


class HeavyBall(GradientEditor):
    """The gradient becomes a running sum: m ← rate · m + g."""

    rate: float = 0.5

    def init(self, weight, site):
        return {"sum": torch.zeros_like(weight)}

    def edit(self, gradient, weight, site):
        total = self.rate * site.state["sum"] + gradient
        return total, {"sum": total}


class Forgetful(HeavyBall):
    def edit(self, gradient, weight, site):
        return gradient, {"total": gradient}


def two_layers(order):
    torch.manual_seed(1)
    return nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in order})


def make_trainer(model, *plugins, seed=7, lr=0.0, loss=None, optimizer=None, **settings):
    def step(trainer, batch):
        total = sum(p.square().sum() for p in model.parameters() if p.requires_grad)
        trainer.update(total if loss is None else loss(model, batch))

    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, optimizer, step=step, plugins=plugins, seed=seed, **settings)


def run(trainer, updates=1):
    trainer.run([0] * updates, max_epochs=1)
    return {name: parameter.detach().clone() for name, parameter in trainer.weights().items()}


def sites_of(model, where="everything"):
    """What an editor sees in a real run: name to (shape, unit_dims)."""
    seen = {}

    class Look(WeightEditor):
        def edit(self, weight, gradient, site):
            seen[site.name] = (tuple(weight.shape), site.unit_dims)
            return weight

    run(make_trainer(model, Look(where=where)))
    return seen


# ---------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(3, 4), (1, 3)),
        (nn.Conv1d(2, 3, 2), (1, 2, 4)),
        (nn.Conv2d(2, 3, (2, 3)), (1, 2, 4, 4)),
        (nn.Conv2d(4, 6, 2, groups=2), (1, 4, 3, 3)),
        (nn.Conv2d(3, 3, 2, groups=3), (1, 3, 3, 3)),
        (nn.ConvTranspose2d(2, 3, (2, 3)), (1, 2, 3, 3)),
        (nn.ConvTranspose2d(4, 6, 2, groups=2), (1, 4, 3, 3)),
        (nn.ConvTranspose1d(3, 3, 2, groups=3), (1, 3, 4)),
    ],
    ids=str,
)
def test_a_unit_is_exactly_what_one_output_channel_depends_on(layer, inputs):
    shape, dims = sites_of(layer)["weight"]
    x = torch.rand(inputs) + 0.5
    outputs = layer(x)
    met = set()
    for channel in range(outputs.shape[1]):
        (gradient,) = torch.autograd.grad(outputs[:, channel].sum(), layer.weight, retain_graph=True)
        used = (gradient != 0).reshape(shape)
        whole = used.all(dim=dims)
        assert torch.equal(whole, used.any(dim=dims)), "a unit is used as a whole or not at all"
        assert int(whole.sum()) == 1
        met.add(int(whole.flatten().nonzero()))
    assert met == set(range(outputs.shape[1])), "every unit is one channel's"


def test_units_of_embeddings_recurrent_layers_and_vectors():
    model = nn.ModuleDict({"words": nn.Embedding(5, 3), "memory": nn.LSTM(2, 3), "norm": nn.LayerNorm(4)})
    model.scale = nn.Parameter(torch.ones(()))
    seen = sites_of(model)
    assert seen["words.weight"] == ((5, 3), (1,))  # one token's vector
    assert seen["memory.weight_ih_l0"] == ((12, 2), (1,))  # one row: one gate of one cell
    assert seen["memory.weight_hh_l0"] == ((12, 3), (1,))
    assert seen["memory.bias_ih_l0"] == ((12,), (0,))  # a vector is one unit
    assert seen["norm.weight"] == ((4,), (0,))
    assert seen["scale"] == ((), ())


def test_edits_of_a_grouped_transposed_convolution_reach_the_weight():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False)
    before = layer.weight.detach().clone()
    run(make_trainer(layer, MaxNorm(0.3)))
    by_channel = before.reshape(2, 2, 3, 2, 2)
    norms = by_channel.square().sum((1, 3, 4), keepdim=True).sqrt()
    torch.testing.assert_close(layer.weight.detach(), (by_channel * (0.3 / norms).clamp(max=1)).reshape(4, 3, 2, 2))


# ---------------------------------------------------------------- what it tells


def test_it_is_read_only():
    site = Site.alone(torch.ones(2, 3), name="fc.weight")
    for attribute in ("name", "module", "optimizer", "update", "epoch", "unit_dims", "generator", "state", "anything"):
        with pytest.raises(AttributeError, match=attribute):
            setattr(site, attribute, None)
    with pytest.raises(TypeError):
        site.state["sum"] = torch.ones(1)


def test_it_tells_name_module_optimizer_update_and_epoch():
    model, seen = nn.Sequential(nn.Linear(2, 2, bias=False)), []

    class Look(WeightEditor):
        def edit(self, weight, gradient, site):
            seen.append((site.name, site.module, site.optimizer, site.update, site.epoch))
            return weight

    trainer = make_trainer(model, Look())
    trainer.run([0, 0], max_epochs=2)
    assert seen == [("0.weight", model[0], "optimizer", u, e) for u, e in [(1, 1), (2, 1), (3, 2), (4, 2)]]


def test_learning_rate_is_that_of_the_weights_own_group_now():
    model, seen = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)}), []
    groups = [{"params": model["a"].parameters(), "lr": 0.5}, {"params": model["b"].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.125)

    class Look(WeightEditor):
        def edit(self, weight, gradient, site):
            seen.append((site.name, site.learning_rate))
            optimizer.param_groups[1]["lr"] = 0.25
            return weight

    run(make_trainer(model, Look(), optimizer=optimizer), updates=2)
    assert seen == [("a.weight", 0.5), ("b.weight", 0.25)] * 2


# ---------------------------------------------------------------- memory


def test_a_plugin_with_init_remembers_each_weight():
    torch.manual_seed(0)
    model = two_layers("ab")
    hand = {name: p.detach().clone() for name, p in model.named_parameters()}
    sums = {name: torch.zeros_like(p) for name, p in hand.items()}
    for _ in range(4):
        for name, weight in hand.items():
            sums[name] = 0.5 * sums[name] + 2 * weight
            hand[name] = weight - 0.1 * sums[name]
    ended = run(make_trainer(model, HeavyBall(), lr=0.1), updates=4)
    for name, weight in hand.items():
        torch.testing.assert_close(ended[name], weight)


def test_what_is_remembered_is_saved_and_restored_with_the_run():
    torch.manual_seed(0)
    whole = make_trainer(two_layers("ab"), HeavyBall(), lr=0.1)
    whole.run([0] * 3, max_epochs=2)
    first = make_trainer(two_layers("ab"), HeavyBall(), lr=0.1)
    first.run([0] * 3, max_epochs=1)
    second = make_trainer(two_layers("ab"), HeavyBall(), lr=0.1)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(first.state_dict())
    first.run([0] * 3, max_epochs=2)  # going on elsewhere must not reach into what was restored
    second.run([0] * 3, max_epochs=2)
    for name, weight in whole.weights().items():
        assert torch.equal(second.weights()[name], weight)


def test_state_that_init_did_not_make_is_refused_by_name():
    with pytest.raises(PluginContractError, match=r"total.*sum") as caught:
        run(make_trainer(two_layers("a"), Forgetful()))
    assert "a.weight" in "".join(caught.value.__notes__)


def test_init_is_called_once_with_the_weight_before_the_first_use():
    seen = []

    class Anchor(WeightEditor):
        def init(self, weight, site):
            seen.append((site.name, site.update, weight.clone()))
            return {"start": weight}

        def edit(self, weight, gradient, site):
            return site.state["start"], {}

    model = two_layers("a")
    before = model["a"].weight.detach().clone()
    ended = run(make_trainer(model, Anchor(after=1)), updates=4)
    assert [(name, update) for name, update, _ in seen] == [("a.weight", 2)]
    assert torch.equal(seen[0][2], before)
    assert torch.equal(ended["a.weight"], before)
