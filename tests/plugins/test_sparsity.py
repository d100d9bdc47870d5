"""Pruning: exact, permanent, clean where weights grow again; against torch's own pruning."""

import copy

import pytest
import torch
import weightsmith_plugins as w
from torch import nn
from torch.nn.utils import prune
from weightsmith import ConfigurationError, Trainer, WeightEvents, cubic, linear, piecewise
from weightsmith_plugins.sparsity import finalise, sparsity_report

BATCHES = [(torch.randn(16, 8, generator=torch.Generator().manual_seed(s)), torch.arange(16) % 4) for s in range(10)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))


def trainer_of(model, *plugins, kind="Adam"):
    optimizer = (
        torch.optim.Adam(model.parameters(), lr=0.01)
        if kind == "Adam"
        else torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    )
    return Trainer(model, optimizer, nn.CrossEntropyLoss(), plugins=plugins, seed=0)


def zeros(model):
    return [layer.weight == 0 for layer in (model[0], model[2])]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.75, 0.99])
def test_global_magnitude_pruning_is_torchs(sparsity):
    ours, theirs = network(), network()
    trainer_of(ours, w.MagnitudePruning(sparsity))._start()
    layers = [(theirs[0], "weight"), (theirs[2], "weight")]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=int(sparsity * 144))
    for mine, other in zip((ours[0], ours[2]), (theirs[0], theirs[2]), strict=True):
        assert torch.equal(mine.weight, other.weight)


def test_each_layer_and_each_unit_can_be_pruned_alone():
    weight = torch.randn(6, 8)
    by_layer = nn.Linear(8, 6)
    by_layer.weight = nn.Parameter(weight.clone())
    prune.l1_unstructured(by_layer, "weight", amount=12)
    assert torch.equal(w.MagnitudePruning(0.25, "layer")(weight), by_layer.weight)
    by_unit = w.MagnitudePruning(0.25, "unit")(weight)
    for row, whole in zip(by_unit, weight, strict=True):
        assert (row == 0).sum() == 2
        assert torch.equal(row[row != 0].abs().min(), whole.abs().sort().values[2])


def test_with_ties_sparsity_is_exact():
    assert w.MagnitudePruning(0.3)(torch.ones(10, 10)).sum() == 70


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
@pytest.mark.parametrize(
    "plugin",
    [
        w.MagnitudePruning(cubic(0.0, 0.9, over=500), every=10),
        w.MagnitudePruning(0.5, "2:4", every=1000),
        w.SNIP(0.8),
        w.MovementPruning(cubic(0.0, 0.7, over=500), every=10),
    ],
    ids=repr,
)
def test_in_a_thousand_updates_no_pruned_weight_comes_back(plugin, kind):
    model = network()
    trainer = trainer_of(model, plugin, kind=kind)
    pruned, revived = zeros(model), []

    def look():
        now = zeros(model)
        if trainer.state.update > 1:
            revived.extend((before & ~after).sum().item() for before, after in zip(pruned, now, strict=True))
        pruned[:] = now

    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, look)
    trainer.run(BATCHES, max_epochs=100)
    assert trainer.state.update == 1000
    assert sum(revived) == 0
    wanted = {w.SNIP: 0.8, w.MovementPruning: 0.7}.get(type(plugin), 0.5 if plugin.scope == "2:4" else 0.9)
    assert sparsity_report(trainer).total == pytest.approx(wanted, abs=1 / 144)
    assert all(value == 0 for value in trainer.violations().values())


def test_a_schedule_is_followed_to_the_weight():
    model = network()
    trainer = trainer_of(model, w.MagnitudePruning(linear(0.0, 0.8, over=20)))
    found = []
    trainer.add_event_handler(
        WeightEvents.UPDATE_COMPLETED, lambda: found.append(sum(int(z.sum()) for z in zeros(model)))
    )
    trainer.run(BATCHES, max_epochs=3)
    assert found == [int(0.8 * min(update, 20) / 20 * 144 + 1e-9) for update in range(1, 31)]


def test_what_grows_again_starts_from_zero_with_clean_optimizer_state():
    model = network()
    trainer = trainer_of(model, w.MagnitudePruning(piecewise({0: 0.9, 9: 0.5}), "layer"))
    trainer.run(BATCHES[:9])
    before = zeros(model)
    state = trainer.optimizers["optimizer"].state[model[0].weight]
    assert state["exp_avg"][before[0]].any()  # momentum that would have revived them
    moments = []
    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED(once=10), lambda: moments.append(state["exp_avg"].clone()))
    trainer.run(BATCHES[:9], max_epochs=2)
    mask = trainer.state_dict()["weightsmith"]["plugins"]["weightsmith_plugins.MagnitudePruning"]["0.weight"]["mask"]
    assert (mask & before[0]).any()
    assert not moments[0][mask & before[0]].any()


def test_snip_keeps_what_the_first_gradient_says():
    model, twin = network(), network()
    trainer_of(model, w.SNIP(0.75)).run(BATCHES[:1])
    nn.functional.cross_entropy(twin(BATCHES[0][0]), BATCHES[0][1]).backward()
    saliency = torch.cat([(layer.weight * layer.weight.grad).abs().flatten() for layer in (twin[0], twin[2])])
    kept = torch.zeros(144, dtype=torch.bool)
    kept[saliency.topk(36).indices] = True
    assert torch.equal(torch.cat([~z.flatten() for z in zeros(model)]), kept)


def test_movement_keeps_what_moved_away_from_zero():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 0.1]]))
    slope = torch.tensor([[1.0, -1.0]])  # the large weight shrinks, the small one grows

    def step(trainer, _):
        return trainer.update((model.weight * slope).sum())

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    Trainer(model, optimizer, step=step, plugins=[w.MovementPruning(piecewise({0: 0.0, 4: 0.5}))]).run(range(5))
    assert model.weight[0, 0] == 0
    assert model.weight[0, 1].item() == pytest.approx(0.35)


def test_rigl_moves_its_mask_to_where_gradients_are_large():
    model = network()
    trainer = trainer_of(model, w.RigL(0.75, 0.5, every=5, where="0"))
    masks = []

    def masked():
        masks.append(
            trainer.state_dict()["weightsmith"]["plugins"]["weightsmith_plugins.RigL"]["0.weight"]["mask"].clone()
        )

    seen = {}

    def look():
        seen.update(weight=model[0].weight.detach().clone(), gradient=model[0].weight.grad.clone())

    trainer.add_event_handler(WeightEvents.STEP_COMPLETED(once=5), look)
    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, masked)
    trainer.run(BATCHES[:6])
    before, after = masks[3], masks[4]
    assert int(before.sum()) == int(after.sum()) == 24
    assert torch.equal(masks[4], masks[5])
    dropped, grown = before & ~after, after & ~before
    assert seen["weight"][dropped].abs().max() <= seen["weight"][before & after].abs().min()
    free = ~(before & after)
    assert seen["gradient"][grown].abs().min() >= seen["gradient"][free & ~after].abs().max()


def test_averages_are_sparse_and_feasible_when_they_are_lent():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4))
    trainer = trainer_of(
        model,
        w.NonNegative(where="0.weight"),
        w.MagnitudePruning(linear(0.0, 0.8, over=60), where="2.weight"),
        w.UnitNorm(where="4.weight"),
        w.EMA(0.99),
    )
    trainer.run(BATCHES, max_epochs=10)
    pruned = model[2].weight == 0
    memory = copy.deepcopy(trainer.state_dict()["weightsmith"]["plugins"])
    with trainer.averaged():
        assert all(value <= 1e-6 for value in trainer.violations().values())
        assert torch.equal(model[2].weight == 0, pruned)
        assert (model[4].weight.norm(dim=1) - 1).abs().max() <= 1e-6
        assert model[0].weight.min() >= 0
    mask = memory["weightsmith_plugins.MagnitudePruning"]["2.weight"]["mask"]
    assert torch.equal(mask, ~pruned)


def test_finalise_keeps_the_zeros_and_reports():
    model = network()
    trainer = trainer_of(model, w.MagnitudePruning(cubic(0.0, 0.9, over=5)))
    trainer.run(BATCHES[:8])
    before = zeros(model)
    report = finalise(trainer)
    assert report.total == pytest.approx(0.9, abs=1 / 144)
    assert "0.weight" in str(report)
    trainer.run(BATCHES[:8], max_epochs=3)
    assert all(torch.equal(a, b) for a, b in zip(before, zeros(model), strict=True))
    with pytest.raises(ConfigurationError, match="no pruning is attached"):
        finalise(trainer_of(network()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: w.MagnitudePruning(1.0), "from 0 to below 1"),
        (lambda: w.MagnitudePruning(0.5, "row"), "scope must be"),
        (lambda: w.MagnitudePruning(0.6, "2:4"), "sparsity is 1 - n / m"),
        (lambda: w.MagnitudePruning(0.5, "2:4")(torch.ones(3, 6)), "that 4 divides"),
    ],
)
def test_what_cannot_be_is_told(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
