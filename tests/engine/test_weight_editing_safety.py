"""Edits are made where autograd sees them, and never between a forward pass and its backward pass."""

import ast
from pathlib import Path

import pytest
import torch
import weightsmith
import weightsmith_plugins
from torch import nn
from weightsmith import Trainer, WeightEvents
from weightsmith_plugins import (
    EMA,
    L1,
    L2,
    Centralize,
    ClipNorm,
    Constant,
    Decay,
    KaimingNormal,
    MaxNorm,
    Orthogonal,
    Perturb,
    Scale,
    UnitNorm,
    WeightHistograms,
)

SOURCES = sorted(
    path for package in (weightsmith, weightsmith_plugins) for path in Path(package.__file__).parent.rglob("*.py")
)
EVERYWHERE = [
    *[KaimingNormal(), L2(0.1), L1(0.1, mode="decoupled"), L1(0.1, mode="proximal"), Centralize(), ClipNorm(0.5)],
    *[Decay(0.1), Perturb(0.1), UnitNorm(), EMA(0.5), WeightHistograms()],
]


class Net(nn.Module):
    """Two layers that the loss reaches, and a spare one that it does not: no optimizer step ever moves that."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 2)
        self.spare = nn.Linear(3, 2)

    def forward(self, inputs):
        return self.second(self.first(inputs).tanh())


def versions(model):
    return {name: parameter._version for name, parameter in model.named_parameters()}


def make_trainer(model, *plugins, step=None, **settings):
    inputs = torch.randn(4, 3)

    def one_update(trainer, batch):
        return trainer.update(model(inputs).square().mean())

    return Trainer(
        model, torch.optim.SGD(model.parameters(), lr=0.1), step=step or one_update, plugins=plugins, seed=0, **settings
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_source_edits_past_autograd(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    past = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "data"]
    assert past == [], f"{path}: .data on lines {past}"


def test_the_search_for_data_looks_at_all_sources():
    folders = {path.parent.name for path in SOURCES}
    assert {"weightsmith", "kinds", "weightsmith_plugins"} <= folders


@pytest.mark.parametrize(
    "plugin",
    [
        *[Constant(0.5), Scale(2.0), KaimingNormal(), Orthogonal(), MaxNorm(0.1), UnitNorm(), Decay(0.1), Perturb(0.1)],
        *[L2(0.1, mode="decoupled"), L1(0.1, mode="decoupled"), L1(0.01, mode="proximal")],
    ],
    ids=repr,
)
def test_every_edit_of_a_weight_is_counted_by_autograd(plugin):
    model = Net()
    trainer = make_trainer(model, plugin.__class__(**{**vars(plugin), "where": "spare.weight"}))
    before, value = versions(model), model.spare.weight.detach().clone()
    trainer.run([0], max_epochs=1)
    assert not torch.equal(model.spare.weight, value), "it edits"
    assert model.spare.weight._version > before["spare.weight"]
    assert model.spare.bias._version == before["spare.bias"], "and only what it selects"


@pytest.mark.parametrize("plugin", [Centralize(where="second.weight"), ClipNorm(1e-3), L2(0.1)], ids=repr)
def test_every_edit_of_a_gradient_is_counted_by_autograd(plugin):
    model, seen = Net(), []
    trainer = make_trainer(model, plugin)

    def note():
        gradient = model.second.weight.grad
        seen.append((gradient._version, gradient.detach().clone()))

    trainer.add_event_handler(WeightEvents.MICROBATCH_COMPLETED, note)
    trainer.add_event_handler(WeightEvents.GRADIENTS_READY, note)
    trainer.run([0], max_epochs=1)
    assert not torch.equal(seen[0][1], seen[1][1])
    assert seen[1][0] > seen[0][0]


def test_plugins_that_only_look_leave_no_trace():
    model = Net()
    before = versions(model)
    trainer = make_trainer(model, EMA(), WeightHistograms(), step=lambda trainer, batch: None)
    trainer.run([0, 0], max_epochs=2)
    trainer.violations()
    trainer.penalty_costs()
    assert versions(model) == before


def test_a_graph_from_before_an_edit_cannot_be_used_after_it():
    model, plugin = Net(), Decay(0.5, at=WeightEvents.MICROBATCH_COMPLETED)
    inputs = torch.randn(4, 3)

    def step(trainer, batch):
        first, second = model(inputs).mean(), model(inputs).square().mean()
        trainer.update(first)  # inside the window no optimizer steps: the plugin alone edits
        trainer.update(second)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        make_trainer(model, plugin, step=step, accumulate=2).run([0], max_epochs=1)
    make_trainer(model, step=step, accumulate=2).run([0], max_epochs=1)  # without the edit it can


def test_a_users_edit_between_forward_and_backward_is_noticed():
    model = Net()
    inputs = torch.randn(4, 3)

    def step(trainer, batch):
        loss = model(inputs).square().mean()
        with torch.no_grad():
            trainer.weights("second.weight")["second.weight"].mul_(2)
        trainer.update(loss)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        make_trainer(model, step=step).run([0], max_epochs=1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_plugin_edits_between_forward_and_backward(accumulate):
    model, at_forward, at_backward = Net(), [], []
    trainer = make_trainer(model, *EVERYWHERE, accumulate=accumulate)
    model.register_forward_pre_hook(lambda module, args: at_forward.append(versions(model)))
    trainer.add_event_handler(WeightEvents.MICROBATCH_COMPLETED, lambda: at_backward.append(versions(model)))
    trainer.run([0] * 4, max_epochs=2)
    assert len(at_forward) == 8
    assert at_forward == at_backward
    assert at_forward[0] != at_forward[-1]


def test_edits_keep_the_parameters_that_the_optimizer_holds():
    model = Net()
    before = {name: (id(p), p.untyped_storage().data_ptr()) for name, p in model.named_parameters()}
    make_trainer(model, *EVERYWHERE).run([0] * 3, max_epochs=2)
    after = {name: (id(p), p.untyped_storage().data_ptr()) for name, p in model.named_parameters()}
    assert after == before
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
