"""Optimizers that evaluate a closure several times a step see one function: loss plus penalties."""

from collections import Counter

import pytest
import torch
from torch import nn
from weightsmith import ConfigurationError, Penalty, Trainer, WeightEvents
from weightsmith_plugins import L2, Centralize

GRADIENTS = []


class Counted(Penalty):
    """½ w², which notes every call of its gradient."""

    def cost(self, weight, site):
        return weight.square().sum() / 2

    def gradient(self, weight, site):
        GRADIENTS.append(site.update)
        return weight.clone()


def problem():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(40, 1, generator=generator, dtype=torch.float64) + inputs[:, :1] * 3 + 2
    return inputs, targets


def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 1).double()


def lbfgs(model, **settings):
    return torch.optim.LBFGS(model.parameters(), **{"lr": 0.5, "max_iter": 6, **settings})


def make_trainer(plugins=(), model=None, loss=nn.functional.mse_loss, **settings):
    model = linear() if model is None else model
    return Trainer(model, lbfgs(model, **settings), loss, plugins=plugins)


def ridge(strength):
    """The minimum of mean((xw + b − y)²) + strength · ‖w‖², the bias free, in closed form."""
    inputs, targets = problem()
    extended = torch.cat([inputs, torch.ones(40, 1, dtype=torch.float64)], dim=1)
    charged = torch.diag(torch.tensor([1.0] * 4 + [0.0], dtype=torch.float64))
    solution = torch.linalg.solve(extended.T @ extended / 40 + strength * charged, extended.T @ targets / 40)
    return solution[:4].T, solution[4]


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_lbfgs_finds_the_minimum_of_loss_plus_penalty(strength, line_search):
    trainer = make_trainer([L2(strength)], line_search_fn=line_search, lr=1.0, max_iter=20)
    trainer.run([problem()], max_epochs=10)
    weight, bias = ridge(strength)
    torch.testing.assert_close(trainer.model.weight.detach(), weight, rtol=0, atol=1e-4)
    torch.testing.assert_close(trainer.model.bias.detach(), bias, rtol=0, atol=1e-4)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_a_penalty_plugin_takes_the_path_of_a_penalty_written_into_the_loss(line_search):
    """Step by step: a line search that were told another function value would go elsewhere."""

    def loss(prediction, targets):  # not quadratic, so that the line search has something to do
        return (prediction - targets).abs().pow(3).mean()

    inputs, targets = problem()
    model = linear()
    optimizer = lbfgs(model, line_search_fn=line_search, lr=0.05, max_iter=4)
    trainer = make_trainer([L2(0.3)], loss=loss, line_search_fn=line_search, lr=0.05, max_iter=4)
    trainer.run([(inputs, targets)] * 5, max_epochs=1)

    def closure():
        optimizer.zero_grad()
        value = loss(model(inputs), targets) + 0.3 * model.weight.square().sum()
        value.backward()
        return value

    for _ in range(5):
        optimizer.step(closure)
    torch.testing.assert_close(trainer.model.weight, model.weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(trainer.model.bias, model.bias, rtol=1e-6, atol=1e-8)


def test_what_update_returns_is_the_loss_without_penalties():
    inputs, targets = problem()
    outputs = []
    trainer = make_trainer([L2(0.3)])
    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, lambda t: outputs.append(t.state.losses["optimizer"]))
    trainer.run([(inputs, targets)], max_epochs=1)
    assert torch.equal(trainer.state.output, outputs[0])
    assert trainer.state.output.ndim == 0
    assert not trainer.state.output.requires_grad


def test_evaluations_fire_for_gradients_and_the_update_once():
    trainer = make_trainer()
    counts, evaluations = Counter(), []
    for event in WeightEvents:
        trainer.add_event_handler(event, lambda t, name: counts.update([(name, t.state.optimizer)]), event.name)
    trainer.add_event_handler(
        WeightEvents.GRADIENTS_READY, lambda t: evaluations.append((t.state.update, t.state.evaluation))
    )
    trainer.run([problem()] * 2, max_epochs=1)
    per_step = 6  # LBFGS without line search: one evaluation per iteration
    assert evaluations == [(update, number) for update in (1, 2) for number in range(1, per_step + 1)]
    name = "optimizer"
    assert counts == {
        ("INITIALIZING", None): 1,
        ("WEIGHTS_EDITED", None): 1,
        ("MICROBATCH_COMPLETED", name): 2 * per_step,
        ("GRADIENTS_COMPUTED", name): 2 * per_step,
        ("GRADIENTS_READY", name): 2 * per_step,
        ("STEP_COMPLETED", name): 2,
        ("WEIGHTS_EDITED", name): 2,
        ("UPDATE_COMPLETED", name): 2,
    }
    assert trainer.state.updates == {"optimizer": 2}


def test_editors_shape_the_gradient_that_steps():
    """A centralised gradient keeps every unit's mean, whatever combination of gradients LBFGS steps along."""
    trainer = make_trainer([Centralize()])
    before = trainer.model.weight.mean().item()
    start = trainer.model.weight.detach().clone()
    trainer.run([problem()] * 3, max_epochs=1)
    assert trainer.model.weight.mean().item() == pytest.approx(before, abs=1e-12)
    assert not torch.allclose(trainer.model.weight, start)


def test_a_decoupled_penalty_shrinks_once_per_update_and_a_loss_penalty_every_evaluation():
    decoupled = make_trainer([Counted(mode="decoupled")])
    GRADIENTS.clear()
    decoupled.run([problem()] * 3, max_epochs=1)
    assert GRADIENTS == [1, 2, 3]
    charged = make_trainer([Counted()])
    GRADIENTS.clear()
    charged.run([problem()] * 3, max_epochs=1)
    assert Counter(GRADIENTS) == {1: 6, 2: 6, 3: 6}


def test_a_penalty_that_is_not_due_is_in_neither_cost_nor_gradient():
    plain, limited = make_trainer(), make_trainer([L2(5.0, after=2)])
    for trainer in (plain, limited):
        trainer.run([problem()] * 2, max_epochs=1)
    assert torch.equal(plain.model.weight, limited.model.weight)


@pytest.mark.parametrize("change", ["attach", "detach"])
@pytest.mark.parametrize("event", [WeightEvents.MICROBATCH_COMPLETED, WeightEvents.GRADIENTS_READY])
def test_a_penalty_attached_or_detached_within_an_update_changes_it_in_neither_cost_nor_gradient(event, change):
    penalty = L2(0.3)
    settings = {"line_search_fn": "strong_wolfe", "lr": 30.0}  # steps too long, which only true values forbid
    plain = make_trainer([penalty] if change == "detach" else [], **settings)
    changed = make_trainer(plain.plugins, **settings)
    changed.add_event_handler(event(once=1), lambda t: t.state.evaluation == 2 and getattr(t, change)(penalty))
    for trainer in (plain, changed):
        trainer.run([problem()], max_epochs=1)
    assert len(changed.plugins) == (change == "attach")
    assert torch.equal(plain.model.weight, changed.model.weight)


def test_a_plain_loss_is_refused_for_an_optimizer_that_evaluates_repeatedly():
    model = linear()

    def step(trainer, batch):
        trainer.update(nn.functional.mse_loss(trainer.model(batch[0]), batch[1]))

    trainer = Trainer(model, lbfgs(model), step=step)
    with pytest.raises(ConfigurationError, match=r"LBFGS.*function"):
        trainer.run([problem()], max_epochs=1)
    assert trainer.state.updates == {"optimizer": 0}


@pytest.mark.parametrize("settings", [{"accumulate": 2}, {"precision": "float16"}], ids=str)
def test_repeated_evaluation_with_accumulation_or_a_scaler_is_refused_at_once(settings):
    model = linear()
    with pytest.raises(ConfigurationError, match=r"LBFGS.*not defined"):
        Trainer(model, lbfgs(model), nn.MSELoss(), **settings)


def test_a_closure_for_an_ordinary_optimizer_is_its_loss():
    def train(pass_on):
        model = linear()

        def step(trainer, batch):
            trainer.update(pass_on(lambda: nn.functional.mse_loss(model(batch[0]), batch[1])))

        Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), step=step, accumulate=2).run([problem()] * 3, 2)
        return model.weight

    assert torch.equal(train(lambda closure: closure), train(lambda closure: closure()))
