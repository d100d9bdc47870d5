"""Random numbers come from the site, and depend on nothing but run seed, class, occurrence, weight and update."""

import pytest
import torch
from torch import nn
from weightsmith import Initializer, Site, Trainer, WeightEditor
from weightsmith_plugins import EMA, L2, KaimingNormal, Perturb


class Draw(Initializer):
    """Random numbers straight from the site."""

    def draw(self, weight, site):
        return torch.randn(weight.shape, generator=site.generator)


class Walk(WeightEditor):
    """Random numbers straight from the site, at every update."""

    def edit(self, weight, gradient, site):
        return torch.randn(weight.shape, generator=site.generator)


class OtherWalk(Walk):
    pass


def same_named_elsewhere():
    class Walk(WeightEditor):
        def edit(self, weight, gradient, site):
            return weight

    return Walk()


def make_trainer(model, *plugins, seed=7, lr=0.0, loss=None, optimizer=None, **settings):
    def step(trainer, batch):
        total = sum(p.square().sum() for p in model.parameters() if p.requires_grad)
        trainer.update(total if loss is None else loss(model, batch))

    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, optimizer, step=step, plugins=plugins, seed=seed, **settings)


def run(trainer, updates=1):
    trainer.run([0] * updates, max_epochs=1)
    return {name: parameter.detach().clone() for name, parameter in trainer.weights().items()}


def two_layers(order):
    torch.manual_seed(1)
    return nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in order})


def test_draws_do_not_depend_on_the_order_of_layers_or_on_other_layers():
    forwards = run(make_trainer(two_layers("ab"), Draw(), Walk(where="a")))
    backwards = run(make_trainer(two_layers("bca"), Draw(), Walk(where="a")))
    for name in ("a.weight", "b.weight"):
        assert torch.equal(forwards[name], backwards[name])


@pytest.mark.parametrize(
    "plugins",
    [
        [Walk(), L2(0.1)],
        [EMA(), Walk()],
        [KaimingNormal(), Perturb(0.1, where="b"), Walk()],
        [OtherWalk(where="b", before=1), Walk()],
    ],
    ids=str,
)
def test_draws_do_not_depend_on_other_plugins(plugins):
    alone = run(make_trainer(two_layers("ab"), Walk()), updates=3)
    among = run(make_trainer(two_layers("ab"), *plugins), updates=3)
    assert torch.equal(alone["a.weight"], among["a.weight"])


def test_draws_do_not_depend_on_another_class_of_the_same_name():
    alone = run(make_trainer(two_layers("a"), Walk()))
    among = run(make_trainer(two_layers("a"), same_named_elsewhere(), Walk()))
    assert torch.equal(alone["a.weight"], among["a.weight"])


def test_draws_do_not_depend_on_torchs_own_generator():
    first = run(make_trainer(two_layers("a"), Walk()))
    trainer = make_trainer(two_layers("a"), Walk())
    torch.manual_seed(12345)
    state = torch.get_rng_state()
    assert torch.equal(run(trainer)["a.weight"], first["a.weight"])
    assert torch.equal(torch.get_rng_state(), state), "and leave it alone"


def test_draws_differ_by_update_weight_class_occurrence_and_seed():
    drawn = {
        "update 1": run(make_trainer(two_layers("ab"), Walk()), updates=1)["a.weight"],
        "update 2": run(make_trainer(two_layers("ab"), Walk()), updates=2)["a.weight"],
        "weight": run(make_trainer(two_layers("ab"), Walk()))["b.weight"],
        "class": run(make_trainer(two_layers("ab"), OtherWalk()))["a.weight"],
        "occurrence": run(make_trainer(two_layers("ab"), Walk(where="b"), Walk(where="a")))["a.weight"],
        "seed": run(make_trainer(two_layers("ab"), Walk(), seed=8))["a.weight"],
    }
    names = list(drawn)
    same = [(a, b) for a in names for b in names if a < b and torch.equal(drawn[a], drawn[b])]
    assert same == []


def test_two_draws_in_one_call_go_on_where_the_first_ended():
    site = Site.alone(torch.zeros(4))
    first, second = torch.rand(4, generator=site.generator), torch.rand(4, generator=site.generator)
    assert not torch.equal(first, second)
    assert torch.equal(torch.rand(4, generator=Site.alone(torch.zeros(4)).generator), first)
