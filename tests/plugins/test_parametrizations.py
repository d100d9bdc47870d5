"""Weight normalisation, spectral normalisation and low-rank adapters: against torch's own and hand-written layers, with
an optimizer that was there before, and with checkpoints in both directions."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations as torchs
from weightsmith import (
    ConfigurationError,
    Parametrization,
    Trainer,
    UnsupportedWeightError,
    added,
    biases,
    load_plain_state_dict,
    named,
    plain_state_dict,
)
from weightsmith_plugins import (
    L2,
    ClipNorm,
    FakeQuantize,
    Freeze,
    LowRankAdapter,
    Normal,
    SpectralNorm,
    WeightNorm,
    Zeros,
)

BATCHES = [
    (torch.randn(16, 6, generator=g), torch.randn(16, 3, generator=g)) for g in [torch.Generator().manual_seed(5)]
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def trained(model, *plugins, epochs=5, optimizer=None, **settings):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = Trainer(model, optimizer, nn.MSELoss(), plugins=plugins, seed=0, **settings)
    return run_on(trainer, epochs)


def run_on(trainer, epochs):
    trainer.run(BATCHES, max_epochs=trainer.state.epoch + epochs)
    return trainer


def largest_singular_value(weight):
    return torch.linalg.svdvals(weight.detach().double())[0].item()


# -------------------------------------------------------------------- the mathematics


def test_weight_norm_trains_as_torchs_does():
    ours, theirs = network(), network()
    for layer in (theirs[0], theirs[2]):
        torchs.weight_norm(layer)
    trained(ours, WeightNorm())
    trained(theirs)
    for mine, other in ((ours[0], theirs[0]), (ours[2], theirs[2])):
        torch.testing.assert_close(mine.weight, other.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.LSTM(3, 4)])
def test_weight_norm_changes_no_weight_when_it_is_attached(layer):
    before = copy.deepcopy(layer.state_dict())
    Trainer(layer, torch.optim.SGD(layer.parameters(), lr=0.1), nn.MSELoss(), plugins=[WeightNorm()])
    after = plain_state_dict(layer)
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight)


def test_a_zero_unit_under_weight_norm_can_learn():
    model = network()
    nn.init.zeros_(model[0].weight)
    trained(model, WeightNorm(), epochs=2)
    assert (model[0].weight != 0).any()
    zeroed = network()
    trained(zeroed, WeightNorm(), Zeros(where="0.weight"), epochs=1)
    assert zeroed[0].weight.isfinite().all()


def test_spectral_norm_keeps_the_largest_singular_value_at_one():
    model = network()
    trainer = trained(model, SpectralNorm(where="0.weight"), epochs=1)
    for _ in range(30):
        run_on(trainer, 1)
        assert largest_singular_value(model[0].weight) == pytest.approx(1, abs=0.02)


def test_spectral_norm_has_the_exact_gradient_where_the_vectors_are_exact():
    raw = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    outer = torch.randn(4, 6, dtype=torch.float64)
    found = torch.autograd.grad((SpectralNorm()(raw) * outer).sum(), raw)[0]
    wanted = torch.autograd.grad((raw / torch.linalg.matrix_norm(raw, 2) * outer).sum(), raw)[0]
    torch.testing.assert_close(found, wanted)


def test_a_forward_pass_under_spectral_norm_changes_nothing():
    model = network()
    trainer = trained(model, SpectralNorm())
    remembered = copy.deepcopy(trainer.state_dict()["weightsmith"]["plugins"])
    first = model.train()(BATCHES[0][0])
    assert torch.equal(model(BATCHES[0][0]), first)
    now = trainer.state_dict()["weightsmith"]["plugins"]
    assert all(
        torch.equal(now[label]["memory"][name]["direction"], remembered[label]["memory"][name]["direction"])
        for label in now
        for name in now[label]["memory"]
    )


def test_spectral_norm_begins_with_the_weights_that_initializers_set():
    model = network()
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        nn.MSELoss(),
        plugins=[SpectralNorm(), Normal(std=3.0)],
        seed=0,
    )
    model(BATCHES[0][0])
    trainer.run(BATCHES, max_epochs=1)
    assert largest_singular_value(model[0].weight) == pytest.approx(1, abs=1e-5)


class HandWrittenAdapter(nn.Module):
    def __init__(self, weight, down, up, factor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.down, self.up, self.factor = nn.Parameter(down), nn.Parameter(up), factor

    def forward(self, inputs):
        return inputs @ (self.weight + self.factor * self.up @ self.down).T


def test_an_adapter_trains_as_a_hand_written_one_and_leaves_the_weight_alone():
    model = nn.Linear(6, 3, bias=False)
    pretrained = model.weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = Trainer(model, optimizer, nn.MSELoss(), plugins=[LowRankAdapter(2, alpha=6.0)], seed=0)
    start = {name: weight.detach().clone() for name, weight in trainer.weights().items()}
    assert list(start) == ["weight", "weight.down", "weight.up"]
    assert torch.equal(model.weight, pretrained)
    trainer.run(BATCHES, max_epochs=40)
    twin = HandWrittenAdapter(pretrained, start["weight.down"], start["weight.up"], 3.0)
    trained(twin, optimizer=torch.optim.Adam(twin.parameters(), lr=0.01), epochs=40)
    torch.testing.assert_close(trainer.weights()["weight.up"], twin.up)
    torch.testing.assert_close(model(BATCHES[0][0]), twin(BATCHES[0][0]))
    assert torch.equal(trainer.weights()["weight"], pretrained), "the frozen weight moved"
    assert torch.linalg.matrix_rank(model.weight.detach() - pretrained) == 2
    merged = model.weight.detach().clone()
    trainer.detach(LowRankAdapter(2, alpha=6.0))
    assert torch.equal(model.weight, merged)
    assert model.weight.requires_grad
    assert optimizer.param_groups[0]["params"] == [model.weight]


def test_an_adapter_of_a_convolution_and_of_a_recurrent_layer():
    for layer in (
        nn.Conv2d(3, 4, 3),
        nn.ConvTranspose2d(3, 4, 3),
        nn.LSTM(3, 4),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
    ):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        trainer = Trainer(layer, optimizer, nn.MSELoss(), plugins=[LowRankAdapter(2)], seed=0)
        assert any(name.endswith(".up") for name in trainer.weights())
        with torch.no_grad():
            for name, weight in trainer.weights("*.up").items():
                weight.normal_()
                assert weight.shape[1] == 2, name
        trainer.detach(LowRankAdapter(2))


def test_a_rank_that_a_weight_does_not_have_is_refused_and_nothing_is_changed():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, nn.MSELoss())
    before = list(model.state_dict())
    with pytest.raises(
        ConfigurationError,
        match=r"LowRankAdapter\(rank=4.*'2\.weight' has shape \(3, 5\): its rank is at most 3.*where",
    ):
        trainer.attach(LowRankAdapter(4))
    assert list(model.state_dict()) == before
    assert len(optimizer.param_groups[0]["params"]) == 4
    assert all(weight.requires_grad for weight in model.parameters())


# -------------------------------------------------------------------- an optimizer that was there before

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("plugin", [WeightNorm(), LowRankAdapter(2), SpectralNorm()], ids=repr)
def test_the_optimizer_goes_on_with_what_it_remembers_and_trains_what_is_new(name, plugin):
    model = network()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    trainer = trained(model, optimizer=optimizer)
    raw = dict(trainer.weights())
    remembered = {key: dict(optimizer.state[weight]) for key, weight in raw.items() if weight in optimizer.state}
    trainer.attach(plugin)
    assert all(trainer.weights()[key] is weight for key, weight in raw.items())
    if name != "LBFGS":  # which remembers all its weights together
        for key, weight in raw.items():
            for entry, value in remembered[key].items():
                assert optimizer.state[weight][entry] is value, f"{entry} of {key} was lost"
    start = {key: weight.detach().clone() for key, weight in trainer.weights().items()}
    run_on(trainer, 3)
    for key, weight in trainer.weights().items():
        moves = plugin.trains_raw or not key.endswith("weight")
        assert torch.equal(weight, start[key]) != moves, key
    computed = model(BATCHES[0][0]).detach()
    trainer.detach(plugin)
    torch.testing.assert_close(model(BATCHES[0][0]), computed)
    assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, raw.values()))
    assert list(map(id, model.parameters())) == list(map(id, raw.values()))
    assert set(optimizer.state) <= set(raw.values())
    run_on(trainer, 2)


def test_a_schedulers_groups_stay_as_they_are():
    model = network()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5}], lr=0.1
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    trainer = Trainer(model, optimizer, nn.MSELoss(), plugins=[LowRankAdapter(1)], seed=0)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 4]
    added = trainer.weights()["2.weight.up"]
    assert any(parameter is added for parameter in optimizer.param_groups[1]["params"])
    trainer.run(BATCHES, max_epochs=1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.25]


def test_a_weight_that_no_optimizer_holds_gets_its_adapter_into_the_only_group_or_an_error():
    model = network().requires_grad_(False)
    model[2].bias.requires_grad_()
    optimizer = torch.optim.Adam([model[2].bias], lr=0.1)
    trainer = trained(model, LowRankAdapter(1), optimizer=optimizer)
    assert (trainer.weights()["0.weight.up"] != 0).any()
    other = network().requires_grad_(False)
    groups = [{"params": [other[0].bias]}, {"params": [other[2].bias]}]
    with pytest.raises(ConfigurationError, match=r"no optimizer holds weight '0\.weight'.*2 groups"):
        Trainer(other, torch.optim.Adam(groups), nn.MSELoss(), plugins=[LowRankAdapter(1)])


# -------------------------------------------------------------------- names, and other plugins


def test_what_is_added_is_a_weight_like_others():
    model = network()
    trainer = trained(model, LowRankAdapter(1, where="0.weight"), Freeze(where="2.*"), ClipNorm(1e-3), epochs=1)
    assert list(trainer.weights("0.weight")) == ["0.weight", "0.weight.down", "0.weight.up"]
    assert set(trainer.weights(nn.Linear)) == set(trainer.weights())
    clipped = [weight.grad for weight in trainer.weights().values() if weight.grad is not None]
    assert len(clipped) == 3, "the adapter's two and the bias beside it"
    assert torch.nn.utils.get_total_norm(clipped).item() == pytest.approx(1e-3, rel=1e-4)


def test_a_penalty_charges_the_weight_that_the_layer_computes_with():
    model = network()
    trainer = trained(model, WeightNorm(where="0.weight"), L2(0.1, where="0.weight"))
    (cost,) = trainer.penalty_costs().values()
    torch.testing.assert_close(cost, 0.1 * model[0].weight.square().sum())


def test_an_adapter_stands_on_a_quantized_weight():
    model = nn.Linear(6, 3, bias=False)
    trainer = trained(model, FakeQuantize(4), LowRankAdapter(1))
    weights = trainer.weights()
    wanted = FakeQuantize(4)(weights["weight"]) + weights["weight.up"] @ weights["weight.down"]
    torch.testing.assert_close(model.weight, wanted)


def test_a_copied_model_has_adapters_of_its_own():
    model = network()
    trainer = trained(model, LowRankAdapter(1))
    twin = copy.deepcopy(model)
    computed = twin(BATCHES[0][0])
    run_on(trainer, 2)
    assert torch.equal(twin(BATCHES[0][0]), computed)


@pytest.mark.parametrize("plugin", [WeightNorm(where="0"), SpectralNorm(where="0"), LowRankAdapter(1, where="0")])
def test_biases_have_no_units_and_are_refused(plugin):
    with pytest.raises(UnsupportedWeightError, match=r"'0\.bias' has shape \(5,\): needed are two axes.*matrices"):
        trained(network(), plugin)


@pytest.mark.parametrize("limit", [{"every": 2}, {"after": 1}, {"before": "2 epochs"}, {"at": "EPOCH_COMPLETED"}])
def test_times_at_which_a_layer_would_not_ask_are_refused(limit):
    with pytest.raises(ConfigurationError, match="WeightNorm"):
        trained(network(), WeightNorm(**limit))


class Shifted(Parametrization):
    """w + shift, with the shift trained."""

    def parameters(self, weight, site):
        return {"shift": weight.new_zeros(())}

    def forward(self, weight, site):
        return weight + site.parameters["shift"]

    def right_inverse(self, weight, site):
        return weight, {"shift": torch.zeros(())}


def test_stacked_parametrizations_keep_their_parameters_apart():
    model = nn.Linear(6, 3, bias=False)
    trainer = trained(model, Shifted(), Shifted())
    assert list(trainer.weights()) == ["weight", "weight.shift", "weight.1.shift"]
    weights = trainer.weights()
    torch.testing.assert_close(model.weight, weights["weight"] + weights["weight.shift"] + weights["weight.1.shift"])


# -------------------------------------------------------------------- checkpoints in both directions


@pytest.mark.parametrize(
    "plugin", [WeightNorm(), SpectralNorm(iterations=20), LowRankAdapter(2), FakeQuantize(4)], ids=repr
)
def test_checkpoints_move_between_plain_and_parametrized(plugin):
    model = network()
    trained(model, plugin)
    state = plain_state_dict(model)
    assert state.keys() == network().state_dict().keys()
    plain = network()
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(BATCHES[0][0]), model(BATCHES[0][0]))

    other = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    trained(other, plugin, epochs=1)
    load_plain_state_dict(other, plain.state_dict())
    torch.testing.assert_close(other(BATCHES[0][0]), plain(BATCHES[0][0]), atol=1e-4, rtol=1e-4)


def test_a_plain_value_that_a_parametrization_cannot_give_leaves_everything_as_it_was():
    model = network()
    trained(model, SpectralNorm())
    before = copy.deepcopy(model.state_dict())
    for state, message in (
        (network().state_dict(), r"'0\.weight' cannot give the value: .* off by up to"),
        ({"0.weight": torch.zeros(5, 6)}, r"lacks \['0\.bias', '2\.bias', '2\.weight'\]"),
        ({**network().state_dict(), "0.bias": torch.zeros(7)}, r"'0\.bias' is \(7,\) in the state, \(5,\) here"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            load_plain_state_dict(model, state)
        assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


# -------------------------------------------------------------------- beside other plugins


def test_what_is_added_has_a_selector_so_that_the_rest_can_be_frozen():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapter = LowRankAdapter(1, where="0.weight")
    trainer = trained(model, adapter, Freeze(where=~added))
    assert list(trainer.weights(added)) == ["0.weight.down", "0.weight.up"]
    trainer.detach(adapter)
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert moved == ["0.weight"]
    run_on(trainer, 1)  # nothing is added any more, which ~added allows


@pytest.mark.parametrize("where", ["*.up", ~named("*.up", "*.down"), named("*.up") | biases])
def test_detaching_what_another_plugin_selects_is_refused_before_anything_changes(where):
    model = network()
    adapter, freeze = LowRankAdapter(1, where="0.weight"), Freeze(where=where)
    trainer = trained(model, adapter, freeze)
    with pytest.raises(ConfigurationError, match=r"LowRankAdapter.*cannot be detached before Freeze"):
        trainer.detach(adapter)
    run_on(trainer, 1)
    assert trainer.plugins == (adapter, freeze)
    trainer.detach(freeze)
    trainer.detach(adapter)
    run_on(trainer, 1)
    assert not torch.nn.utils.parametrize.is_parametrized(model[0])
