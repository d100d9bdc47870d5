"""Who acts before whom: the list's order across kinds does not matter, and the plan says what happens."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from torch import nn
from weightsmith import (
    Average,
    Constraint,
    GradientEditor,
    Initializer,
    Parametrization,
    Penalty,
    Probe,
    Trainer,
    WeightEditor,
    WeightEvents,
    named,
)
from weightsmith_plugins import EMA, L2, AdaptiveClip, KaimingNormal, MaxNorm, Perturb, UnitNorm, WeightHistograms


class Doubled(Parametrization):
    """The layer computes with twice its raw parameter."""

    def forward(self, weight, site):
        return 2 * weight

    def right_inverse(self, weight, site):
        return weight / 2


def batches(count):
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 3), (4, 2)]
    return [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(count)]


def make_trainer(plugins=(), lr=0.1, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)
    return Trainer(model, optimizer, nn.MSELoss(), plugins=plugins, seed=3, **options)


def weights_of(trainer):
    return [weight.detach().clone() for weight in trainer.weights().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


KINDS = [
    [Doubled(where="4.weight"), UnitNorm(mode="forward", where="2.weight")],
    [KaimingNormal()],
    [AdaptiveClip(0.05)],
    [L2(0.1), L2(0.1, mode="decoupled", where="0.weight")],
    [Perturb(0.01)],
    [MaxNorm(0.7, where="0.weight")],
    [EMA(0.5)],
    [WeightHistograms()],
]
"""Plugins by kind; within a kind the order is part of the configuration."""


def train(plugins):
    trainer = make_trainer(plugins)
    trainer.run(batches(3), max_epochs=2)
    with trainer.averaged():
        means = weights_of(trainer)
    return weights_of(trainer) + means


REFERENCE = []


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.permutations([number for number, kind in enumerate(KINDS) for _ in kind]))
def test_the_order_of_the_list_across_kinds_changes_no_bit(order):
    REFERENCE or REFERENCE.extend(train(list(itertools.chain(*KINDS))))
    left = [iter(kind) for kind in KINDS]
    assert same(REFERENCE, train([next(left[number]) for number in order]))


# ---------------------------------------------------------------- the plan

TRACE = []
RUNNING = []


def note(plugin, site):
    row = (RUNNING[-1].last_event_name.name, repr(plugin))
    if not TRACE or TRACE[-1][0] != row:
        TRACE.append((row, []))
    TRACE[-1][1].append(site.name)


class First(Initializer):
    def draw(self, weight, site):
        note(self, site)
        return weight


class Charge(Penalty):
    def cost(self, weight, site):
        return weight.sum()

    def gradient(self, weight, site):
        note(self, site)
        return weight

    def proximal(self, weight, step, site):
        note(self, site)
        return weight


class Bend(GradientEditor):
    def edit(self, gradient, weight, site):
        note(self, site)
        return gradient


class Nudge(WeightEditor):
    strength: float = 1.0

    def edit(self, weight, gradient, site):
        note(self, site)
        return weight


class Fence(Constraint):
    def project(self, weight, site):
        note(self, site)
        return weight


class Mean(Average):
    def average(self, mean, weight, site):
        note(self, site)
        return mean


class Look(Probe):
    def measure(self, weight, site):
        note(self, site)
        return {}


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_plan_is_what_happens(seed, elsewhere):
    on_other_events = [
        Bend(at=WeightEvents.GRADIENTS_COMPUTED),
        Mean(at=Events.ITERATION_COMPLETED),
        Look(at=WeightEvents.UPDATE_COMPLETED),
    ]
    plugins = [
        *(on_other_events if elsewhere else []),
        First(where=["4", "0.weight"]),
        Charge(),
        Charge(mode="decoupled", where="2.weight"),
        Charge(mode="proximal"),
        Bend(where="*.bias"),
        Nudge(2.0),
        Nudge(1.0, where=named("2") & ~named("*.bias")),
        Fence(where="0.weight"),
        Fence(where="4.weight"),
        Mean(),
        Look(),
    ]
    order = torch.randperm(len(plugins), generator=torch.Generator().manual_seed(seed)).tolist()
    trainer = make_trainer([plugins[i] for i in order])
    RUNNING.append(trainer)
    TRACE.clear()
    trainer.run(batches(1), max_epochs=1)
    rows = [((row.event, row.plugin), list(row.weights)) for row in trainer.plan().rows]
    split = 1 + max(i for i, ((event, _), _) in enumerate(rows) if event == "INITIALIZING")
    start = [row for row in rows if row[0][0] == "WEIGHTS_EDITED"]
    assert len(rows) == len(plugins)
    assert rows[:split] + start + rows[split:] == TRACE
