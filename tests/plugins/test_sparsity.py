"""Pruning: exact, permanent, clean where weights grow again; against torch's own pruning."""

import copy
import math

import pytest
import torch
import weightsmith_plugins as w
from torch import nn
from torch.nn.utils import prune
from weightsmith import (
    ConfigurationError,
    ConflictError,
    Plugin,
    Trainer,
    UnsupportedWeightError,
    WeightEvents,
    cubic,
    linear,
    piecewise,
)
from weightsmith_plugins.sparsity import finalise, sparsity_report

BATCHES = [(torch.randn(16, 8, generator=torch.Generator().manual_seed(s)), torch.arange(16) % 4) for s in range(10)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))


def trainer_of(model, *plugins, kind="Adam", **options):
    optimizer = (
        torch.optim.Adam(model.parameters(), lr=0.01)
        if kind == "Adam"
        else torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    )
    return Trainer(model, optimizer, nn.CrossEntropyLoss(), plugins=plugins, seed=0, **options)


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
    mask = trainer.state_dict()["weightsmith"]["plugins"]["weightsmith_plugins.MagnitudePruning"]["memory"]["0.weight"][
        "mask"
    ]
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
            trainer.state_dict()["weightsmith"]["plugins"]["weightsmith_plugins.RigL"]["memory"]["0.weight"][
                "mask"
            ].clone()
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
    mask = memory["weightsmith_plugins.MagnitudePruning"]["memory"]["2.weight"]["mask"]
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
        (lambda: w.MagnitudePruning(0.6, "2:4"), r"write sparsity=1 - 2 / 4"),
        (lambda: w.MagnitudePruning(0.5, "2:4")(torch.ones(3, 6)), "that 4 divides"),
    ],
)
def test_what_cannot_be_is_told(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def mask_of(trainer, plugin, weight="0.weight"):
    return trainer.state_dict()["weightsmith"]["plugins"][f"weightsmith_plugins.{plugin}"]["memory"][weight][
        "mask"
    ].clone()


def test_a_skipped_update_teaches_nothing():
    bad = (BATCHES[1][0] * float("nan"), BATCHES[1][1])
    for plugin, batches in ((w.MovementPruning(0.5, after=3), [BATCHES[0], bad]), (w.SNIP(0.5), [bad, BATCHES[0]])):
        model = network()
        trainer = trainer_of(model, w.SkipNonFinite(), plugin)
        trainer.run([*batches, *BATCHES[2:8]])
        assert sparsity_report(trainer).total == pytest.approx(0.5, abs=1 / 144)
        assert all(weight.isfinite().all() for weight in trainer.weights().values())


class Spoiling(Plugin):
    """Makes one gradient of an update infinite while masks look at it, as an overflow would."""

    order = 45

    def subscriptions(self, trainer):
        def spoil():
            if trainer.state.update == 1:
                trainer.model[0].weight.grad[0] = math.inf

        def mend():
            trainer.model[0].weight.grad.nan_to_num_(0, 0, 0)

        yield WeightEvents.GRADIENTS_COMPUTED, spoil
        yield WeightEvents.GRADIENTS_READY, mend


@pytest.mark.parametrize("plugin", [w.SNIP(0.5), w.MovementPruning(0.5, every=3)], ids=repr)
def test_a_gradient_that_is_not_finite_chooses_no_mask(plugin):
    trainer, sparsities = trainer_of(network(), Spoiling(), plugin, nonfinite="ignore"), []
    trainer.add_event_handler(
        WeightEvents.UPDATE_COMPLETED, lambda: sparsities.append(round(sparsity_report(trainer).total, 2))
    )
    trainer.run(BATCHES[:3])
    assert sparsities == ([0, 0.5, 0.5] if isinstance(plugin, w.SNIP) else [0, 0, 0.5])
    memory = trainer.state_dict()["weightsmith"]["plugins"][f"weightsmith_plugins.{type(plugin).__name__}"]["memory"]
    assert all(value.isfinite().all() for entries in memory.values() for value in entries.values())


def test_rigl_keeps_its_mask_where_the_gradient_is_not_finite():
    model = network()
    trainer = trainer_of(model, Spoiling(), w.RigL(0.5, 0.5, where="0"), nonfinite="ignore")
    trainer._event_handlers[WeightEvents.GRADIENTS_READY].clear()
    masks = []
    trainer.add_event_handler(WeightEvents.WEIGHTS_EDITED, lambda: masks.append(mask_of(trainer, "RigL")))
    trainer.run(BATCHES[:1])
    assert torch.equal(masks[0], masks[1])


def test_a_run_that_goes_on_goes_on_with_its_masks():
    trainer = trainer_of(network(), w.RigL(0.5, 0.3, before=2))
    trainer.run(BATCHES[:5])
    mask = mask_of(trainer, "RigL")
    trainer.run(BATCHES[:1])
    assert torch.equal(mask_of(trainer, "RigL"), mask)
    trainer = trainer_of(network(), w.MagnitudePruning(linear(0, 0.9, over=20), before=3))
    trainer.run(BATCHES)
    before = sparsity_report(trainer).total
    trainer.run(BATCHES)
    assert sparsity_report(trainer).total == before == pytest.approx(0.09, abs=1 / 144)


def test_weights_of_two_optimizers_are_ranked_apart_from_the_start():
    models = {"large": nn.Linear(8, 8, bias=False), "small": nn.Linear(8, 8, bias=False)}
    with torch.no_grad():
        models["small"].weight.mul_(0.01)
    large = models["large"].weight.abs() > models["large"].weight.abs().median()
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=1e-3) for name, model in models.items()}

    def step(trainer, batch):
        for name, model in models.items():
            trainer.update(model(batch[0]).square().mean(), name)

    trainer = Trainer(models, optimizers, step=step, plugins=[w.MagnitudePruning(0.5)])
    found = []
    trainer.add_event_handler(
        WeightEvents.WEIGHTS_EDITED, lambda: found.append([int((m.weight == 0).sum()) for m in models.values()])
    )
    trainer.run(BATCHES[:2])
    assert found == [[32, 32]] * 5
    assert torch.equal(models["large"].weight != 0, large)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.frozen = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.used(self.frozen(x))


@pytest.mark.parametrize("plugin", [w.SNIP(0.5), w.MovementPruning(0.5)], ids=repr)
def test_weights_without_a_gradient_are_not_ranked_and_are_named(plugin, caplog):
    trainer = trainer_of(Branches(), plugin)
    trainer.run(BATCHES)
    assert sparsity_report(trainer).zeros == {"used.weight": 32, "unused.weight": 0, "frozen.weight": 0}
    assert caplog.text.count("no gradient reached ['unused.weight', 'frozen.weight']") == 1


def scores_of(plugins, optimizer):
    model = network()
    trainer = Trainer(model, optimizer(model.parameters()), nn.CrossEntropyLoss(), plugins=plugins, seed=0)
    before, products = model[0].weight.detach().clone(), []

    def look():
        if trainer.state.evaluation <= 1:
            products.append(before * model[0].weight.grad)

    trainer.add_event_handler(WeightEvents.GRADIENTS_COMPUTED, look)
    trainer.run(BATCHES[:1])
    memory = trainer.state_dict()["weightsmith"]["plugins"]["weightsmith_plugins.MovementPruning"]["memory"]["0.weight"]
    return memory["score"], -products[-1]


@pytest.mark.parametrize(
    ("plugins", "optimizer"),
    [
        ([w.SharpnessAware(0.5)], lambda held: torch.optim.SGD(held, lr=0.1)),
        ([], lambda held: torch.optim.LBFGS(held, max_iter=5)),
    ],
    ids=["sharpness-aware", "LBFGS"],
)
def test_an_update_is_counted_once_however_often_it_is_evaluated(plugins, optimizer):
    found, wanted = scores_of([*plugins, w.MovementPruning(linear(0.0, 0.5, over=100), after=50)], optimizer)
    assert torch.equal(found, wanted)


def test_what_rigl_drops_and_grows_at_once_has_clean_optimizer_state():
    model = network()
    trainer = trainer_of(model, w.RigL(0.5, 1.0, every=4, where="0"), kind="SGD")
    seen = {}

    def look():
        seen.update(mask=mask_of(trainer, "RigL"), there=model[0].weight != 0)

    trainer.add_event_handler(WeightEvents.STEP_COMPLETED(once=4), look)
    trainer.run(BATCHES[:4])
    reborn = seen["mask"] & seen["there"] & mask_of(trainer, "RigL") & (model[0].weight == 0)
    momentum = trainer.optimizers["optimizer"].state[model[0].weight]["momentum_buffer"]
    assert reborn.any()
    assert not momentum[reborn].any()


@pytest.mark.parametrize("limits", [{"after": 5}, {"at": "EPOCH_COMPLETED"}, {"after": 5, "every": 3}], ids=repr)
def test_rigl_is_sparse_from_the_start(limits):
    trainer = trainer_of(network(), w.RigL(0.75, **limits))
    found = []
    trainer.add_event_handler(WeightEvents.WEIGHTS_EDITED, lambda: found.append(sparsity_report(trainer).total))
    trainer.run(BATCHES)
    assert set(found[:6]) == {0.75}
    assert min(found) == 0.75


@pytest.mark.parametrize("plugin", [w.RigL(0.5), w.SNIP(0.5), w.MovementPruning(0.5)], ids=repr)
def test_sparse_gradients_are_refused_before_the_first_step(plugin):
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True))
    with pytest.raises(UnsupportedWeightError, match="gets sparse gradients"):
        Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), plugins=[plugin])


def test_a_share_that_floating_point_rounds_is_a_share():
    assert (w.MagnitudePruning(2 / 3, scope="1:3")(torch.randn(4, 6)) != 0).sum() == 8
    assert (w.MagnitudePruning(0.9, scope="1:10")(torch.randn(2, 10)) != 0).sum() == 2


@pytest.mark.parametrize("plugin", [w.MagnitudePruning(0.5, after=1, before=3), w.KeepZeros(), w.RigL(0.5)], ids=repr)
def test_a_pruned_weight_that_became_infinite_is_zero_again(plugin):
    model = network()
    with torch.no_grad():
        model[0].weight[:, :4] = 0
    trainer = trainer_of(model, plugin)

    def overflow():
        if trainer.state.update == 6:
            name = type(plugin).__name__
            with torch.no_grad():
                model[0].weight[~mask_of(trainer, name)] = math.inf

    trainer.add_event_handler(WeightEvents.STEP_COMPLETED, overflow)
    trainer.run(BATCHES)
    assert all(weight.isfinite().all() for weight in trainer.weights().values())
    assert (model[0].weight == 0).sum() >= 40


def test_the_report_counts_what_layers_compute_with():
    trainer = trainer_of(network(), w.TopK(0.25, mode="forward"))
    assert sparsity_report(trainer).total == pytest.approx(0.75, abs=0.01)


# -------------------------------------------------------------------- together with quantization


def test_a_pruned_model_is_finalised_quantized_and_stays_sparse():
    model = network()
    trainer = trainer_of(model, w.MagnitudePruning(0.5))
    trainer.run(BATCHES, max_epochs=1)
    finalise(trainer)
    before = {f"{name}.weight": model[int(name)].weight == 0 for name in "02"}
    trainer.attach(w.FakeQuantize(4))
    trainer.run(BATCHES, max_epochs=3)
    for name, was_zero in before.items():
        layer = model.get_submodule(name.rpartition(".")[0])
        assert (layer.weight[was_zero] == 0).all()  # what it computes with
        assert (layer.parametrizations.weight.original[was_zero] == 0).all()
        assert (layer.parametrizations.weight.original[~was_zero] != 0).all()
    assert all(violation == 0 for violation in trainer.violations().values())
    integers = w.to_int8(trainer)
    assert (integers[0].weight().int_repr()[before["0.weight"]] == 0).all()


def test_sparsity_may_grow_while_the_layer_computes_with_few_bits():
    model = network()
    trainer = trainer_of(model, w.FakeQuantize(8), w.MagnitudePruning(linear(0.0, 0.75, over=10), "layer"))
    trainer.run(BATCHES, max_epochs=3)
    raw = trainer.weights("0")["0.weight"]
    assert int((raw == 0).sum()) == 72
    assert torch.equal(model[0].weight == 0, raw == 0)


def test_zeros_are_those_of_the_raw_weight_whatever_few_bits_make_of_small_ones():
    model = network()
    with torch.no_grad():
        model[0].weight[0, :4] = 0
    trainer = trainer_of(model, w.KeepZeros(where="0.weight"), w.FakeQuantize(2, where="0.weight"))
    trainer.run(BATCHES, max_epochs=1)
    assert int((trainer.weights()["0.weight"] == 0).sum()) == 4
    assert int((model[0].weight == 0).sum()) > 4


@pytest.mark.parametrize("made", [w.WeightNorm(), w.SpectralNorm(), w.LowRankAdapter(1)])
def test_a_parametrization_that_would_move_zeros_is_refused(made):
    trainer = trainer_of(network(), w.MagnitudePruning(0.5))
    with pytest.raises(UnsupportedWeightError, match="parametrized"):
        trainer.attach(made)


def test_snip_may_wait():
    model = network()
    trainer = trainer_of(model, w.SNIP(0.5, after=3))
    found = []
    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, lambda: found.append(sparsity_report(trainer).total))
    trainer.run(BATCHES, max_epochs=1)
    assert found == [0, 0, 0] + [0.5] * 7


@pytest.mark.parametrize(
    "constraint", [w.MaxNorm(0.5), w.Clamp(-0.2, 0.2), w.NonNegative(), w.L1Ball(1.0)], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("first", [True, False])
def test_a_pruning_shares_weights_with_sets_that_zeros_do_not_leave(constraint, first):
    model, pruning = network(), w.MagnitudePruning(0.5, "layer")
    trainer = trainer_of(model, *((pruning, constraint) if first else (constraint, pruning)))
    trainer.run(BATCHES, max_epochs=2)
    assert sparsity_report(trainer).total >= 0.5
    assert all(violation <= 1e-6 for violation in trainer.violations().values())


@pytest.mark.parametrize(
    ("first", "second", "mend"),
    [
        (w.MagnitudePruning(0.5), w.UnitNorm(), "other: give them different weights"),
        (w.Clamp(0.1, 0.2), w.MagnitudePruning(0.5), "other: give them different weights"),
        (w.MagnitudePruning(0.5), w.RigL(0.5), "other: give them different weights"),
        (w.MaxNorm(1.0), w.UnitNorm(), r"write Intersection\(first, second\), or give them"),
    ],
)
def test_constraints_that_would_break_each_other_are_refused_with_a_mend_that_works(first, second, mend):
    with pytest.raises(ConflictError, match=mend):
        trainer_of(network(), first, second)


def test_a_branch_that_is_silent_before_snip_looks_is_not_named(caplog):
    model = Branches()

    def step(trainer, batch):
        x = torch.ones(2, 8)
        output = model(x) if trainer.state.iteration <= 2 else sum(layer(x).sum() for layer in model.children())
        return trainer.update(output.sum())

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    Trainer(model, optimizer, step=step, plugins=[w.SNIP(0.5, after=2)], seed=0).run([None] * 4, max_epochs=1)
    assert "unused" not in caplog.text
