"""Plugins that remember: every kind may define ``init``, and the conformance suite takes them as it takes others."""

import pytest
import torch
from torch import nn
from weightsmith import (
    Constraint,
    GradientEditor,
    Initializer,
    Parametrization,
    Penalty,
    PluginContractError,
    Probe,
    Trainer,
    WeightEditor,
)
from weightsmith.testing import Case, conformance


class DistanceFromStart(Penalty):
    """L2-SP: strength · ‖w − start‖² (Li et al., 2018, arXiv:1802.01483)."""

    strength: float = 0.1

    def init(self, weight, site):
        return {"start": weight.clone()}

    def cost(self, weight, site):
        return self.strength * (weight - site.state["start"]).square().sum()


class FirstMask(Constraint):
    """The weights that were positive at first stay; the others are zero for ever."""

    def init(self, weight, site):
        return {"mask": (weight > 0).to(weight.dtype)}

    def project(self, weight, site):
        return weight * site.state["mask"].to(weight.dtype)


class Momentum(GradientEditor):
    """The gradient's running sum."""

    decay: float = 0.5

    def init(self, weight, site):
        return {"sum": torch.zeros_like(weight)}

    def edit(self, gradient, weight, site):
        total = self.decay * site.state["sum"].to(gradient.dtype) + gradient
        return total, {"sum": total}


class Counting(WeightEditor):
    """Adds one, then two, then three thousandths."""

    def init(self, weight, site):
        return {"count": torch.zeros((), dtype=torch.float64)}

    def edit(self, weight, gradient, site):
        count = site.state["count"] + 1
        return weight + (count * 1e-3).to(weight.dtype), {"count": count}


class Centred(Parametrization):
    """What the weight was at first, plus the raw weight's distance from it, doubled."""

    def init(self, weight, site):
        return {"centre": weight.clone()}

    def forward(self, weight, site):
        centre = site.state["centre"].to(weight.dtype)
        return centre + 2 * (weight - centre)

    def right_inverse(self, weight, site):
        centre = site.state["centre"].to(weight.dtype)
        return centre + (weight - centre) / 2


class Redraw(Initializer):
    """A weight that remembers what it was before."""

    def init(self, weight, site):
        return {"before": weight.clone()}

    def draw(self, weight, site):
        return -site.state["before"].to(weight.dtype)


class Travelled(Probe):
    """How far the weight is from where it was first seen."""

    def init(self, weight, site):
        return {"first": weight.clone()}

    def measure(self, weight, site):
        return {"travelled": (weight - site.state["first"]).abs().sum().float()}


CASES = [
    Case(DistanceFromStart()),
    Case(DistanceFromStart(mode="decoupled")),
    Case(FirstMask(), holds=lambda w: torch.ones_like(w, dtype=torch.bool)),
    Case(Momentum()),
    Case(Counting()),
    Case(Centred()),
    Case(Redraw()),
    Case(Travelled()),
]


@pytest.mark.parametrize(("check", "case"), conformance(CASES), ids=str)
def test_conformance(check, case):
    check(case)


def train(plugin, updates, lr=0.1, **options):
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    start = model.weight.detach().clone()

    def step(trainer, slope):
        return trainer.update((model.weight * slope).sum())

    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=lr), step=step, plugins=[plugin], **options)
    trainer.run([torch.ones(2, 3)] * updates)
    return trainer, model.weight.detach(), start


def test_a_penalty_pulls_back_to_where_it_first_saw_the_weight():
    _, weight, start = train(DistanceFromStart(0.5), 2)
    # w1 = s − 0.1; the pull 2 · 0.5 · (w1 − s) = −0.1 works against the second step
    assert torch.allclose(weight, start - 0.1 - 0.1 * (1 - 0.1))


def test_its_cost_can_be_asked_without_changing_what_it_remembers():
    trainer, _, _ = train(DistanceFromStart(0.5), 1)
    state = trainer.state_dict()["weightsmith"]["plugins"]
    (cost,) = trainer.penalty_costs().values()
    assert cost.item() == pytest.approx(0.5 * 6 * 0.01, rel=1e-5)
    again = trainer.state_dict()["weightsmith"]["plugins"]
    assert str(again) == str(state)


def test_an_editor_with_memory_is_momentum():
    _, weight, start = train(Momentum(0.5), 3)
    assert torch.allclose(weight, start - 0.1 * (1 + 1.5 + 1.75))


def test_a_mask_holds_in_both_modes():
    for mode in ("project", "forward"):
        trainer, _, start = train(FirstMask(mode=mode), 3)
        weight = trainer.model.weight.detach()
        assert torch.equal(weight[start <= 0], torch.zeros(int((start <= 0).sum())))
        assert set(trainer.violations().values()) == {0.0}


def test_a_parametrization_with_memory_doubles_the_step():
    trainer, _, start = train(Centred(), 1)
    assert torch.allclose(trainer.model.weight.detach(), start - 0.1 * 2 * 2)


def test_entries_that_init_did_not_make_are_refused():
    class Confused(Counting):
        def edit(self, weight, gradient, site):
            return weight, {"coutn": site.state["count"]}

    with pytest.raises(PluginContractError, match=r"\['coutn'\], which init did not make: it made \['count'\]"):
        train(Confused(), 1)
