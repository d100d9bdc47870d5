"""Losses, gradients and weights that are not finite."""

import logging
import math

import pytest
import torch
from ignite.engine import Events
from torch import nn
from weightsmith import ConfigurationError, NonFiniteError, Trainer, WeightEvents
from weightsmith.checkpoint import saved_in
from weightsmith.finiteness import Restore, first_nonfinite
from weightsmith.tensors import nonfinite_flag
from weightsmith_plugins import EMA, Checkpoints, ClipNorm

GOOD = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(4)]
BAD = (torch.full((4, 3), math.nan), torch.randn(4, 2))
CURED = (BAD[0].nan_to_num(0.5), BAD[1])


def trainer_of(plugins=(), optimizer=torch.optim.Adam, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    trainer = Trainer(model, optimizer(model.parameters(), lr=0.01), nn.MSELoss(), plugins=plugins, seed=3, **options)
    numbers = []
    trainer.add_event_handler(
        WeightEvents.UPDATE_COMPLETED, lambda t: numbers.append((t.state.iteration, t.state.update))
    )
    return trainer, numbers


def test_a_loss_that_is_not_finite_is_raised_before_it_harms_a_weight():
    trainer, numbers = trainer_of([ClipNorm(1.0)])
    with pytest.raises(
        NonFiniteError, match=r"update 3, epoch 1: the loss is nan, and the gradient of the weight '0\.we"
    ):
        trainer.run([*GOOD[:2], BAD, *GOOD])
    assert numbers == [(1, 1), (2, 2)]
    assert all(weight.isfinite().all() for weight in trainer.weights().values())


def test_a_weight_that_is_not_finite_is_named_with_its_update():
    trainer, _ = trainer_of()

    def spoil():
        with torch.no_grad():
            trainer.model[2].bias[1] = math.inf

    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED(once=2), spoil)
    with pytest.raises(
        NonFiniteError, match=r"update 3, .*: the loss is inf, as the weight '2\.bias' is .* since update 2"
    ):
        trainer.run(GOOD)


@pytest.mark.parametrize(("policy", "advised"), [("raise", "'skip' or 'restore'"), ("skip", "'restore'")])
def test_weights_are_looked_at_when_an_epoch_ends(policy, advised):
    trainer, _ = trainer_of(nonfinite=policy)

    def spoil():
        with torch.no_grad():
            trainer.model[0].weight[0, 0] = math.nan

    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED(once=4), spoil)
    problem = r"after update 4, at the end of epoch 1: the weight '0\.weight' is not finite"
    with pytest.raises(NonFiniteError, match=rf"{problem}\. Try .*, or nonfinite={advised}$"):
        trainer.run(GOOD)


def test_what_an_optimizer_remembers_is_looked_at():
    trainer, _ = trainer_of()
    trainer.run(GOOD)
    trainer.optimizers["optimizer"].state[trainer.model[0].bias]["exp_avg"][0] = math.inf
    found = first_nonfinite(trainer.models, trainer.optimizers)
    assert found == "'exp_avg', which the optimizer 'optimizer' remembers of its parameter 1,"


def put(tensor, value):
    with torch.no_grad():
        tensor.view(-1)[-1] = value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda model, state: None, None),
        (lambda model, state: put(model[1].weight, torch.finfo(model[1].weight.dtype).max), None),
        (lambda model, state: put(model[0].weight, math.nan), "the weight '0.weight'"),
        (lambda model, state: put(model[2].bias, -math.inf), "the weight '2.bias'"),
        (lambda model, state: put(model[2].frozen, math.nan), None),
        (lambda model, state: put(model[1].running_var, math.nan), "the buffer '1.running_var'"),
        (lambda model, state: put(model[1].running_var, math.inf), None),
        (
            lambda model, state: put(state["exp_avg_sq"], math.inf),
            "'exp_avg_sq', which the optimizer 'optimizer' remembers of its parameter 0,",
        ),
    ],
)
def test_what_is_not_finite_is_found_among_what_is(dtype, spoil, found):
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).to(dtype)
    model[2].frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    model[2].nothing = nn.Parameter(torch.ones(0))
    model[2].register_buffer("mask", torch.tensor([0.0, -math.inf]))
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-3)  # as half precision needs
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    optimizer.step()
    spoil(model, optimizer.state[model[0].weight])
    assert first_nonfinite({"": model}, {"optimizer": optimizer}) == found


def test_there_may_be_nothing_to_look_at():
    assert first_nonfinite({"": nn.ReLU()}, {}) is None


def test_skipping_leaves_everything_out_and_uses_the_number_again(caplog):
    trainer, numbers = trainer_of([EMA(0.5)], nonfinite="skip")
    with caplog.at_level(logging.WARNING):
        trainer.run([*GOOD[:2], BAD, *GOOD[2:]])
    assert numbers == [(1, 1), (2, 2), (4, 3), (5, 4)]
    plain, _ = trainer_of([EMA(0.5)])
    plain.run(GOOD)
    assert all(map(torch.equal, trainer.weights().values(), plain.weights().values()))
    assert "update 3, epoch 1: the loss is nan" in caplog.text
    assert "the update is skipped" in caplog.text


def test_a_gradient_alone_is_skipped():
    trainer, numbers = trainer_of(nonfinite="skip")

    def spoil():
        if trainer.state.iteration == 2:
            trainer.model[0].weight.grad[0, 0] = math.inf

    trainer.add_event_handler(WeightEvents.GRADIENTS_COMPUTED, spoil)
    trainer.run(GOOD)
    assert numbers == [(1, 1), (3, 2), (4, 3)]


def test_skipping_does_not_hide_statistics_that_are_not_finite():
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    trainer = Trainer(model, torch.optim.Adam(model.parameters()), nn.MSELoss(), nonfinite="skip")
    with pytest.raises(NonFiniteError, match=r"the buffer '1\.running_mean' is not finite already: look at the data"):
        trainer.run([*GOOD, BAD, *GOOD])


def test_patience_ends():
    trainer, _ = trainer_of(nonfinite="skip")
    with pytest.raises(NonFiniteError, match="100 updates in a row were skipped"):
        trainer.run([BAD] * 200)


def test_going_back_with_a_lower_learning_rate(tmp_path, caplog):
    """The third epoch's second batch is bad once: the run goes back to the second epoch's checkpoint."""
    bad = iter([BAD])

    def step(trainer, batch):
        inputs, targets = next(bad, CURED) if trainer.state.iteration == 10 else batch
        return trainer.update(nn.functional.mse_loss(trainer.model(inputs), targets))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.08)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    trainer = Trainer(
        model,
        optimizer,
        step=step,
        plugins=[Checkpoints()],
        run_dir=tmp_path,
        nonfinite=Restore(0.25, times=2),
        keep=[scheduler],
    )
    rates = []
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda t: rates.append((t.state.iteration, optimizer.param_groups[0]["lr"]))
    )
    trainer.run(GOOD, max_epochs=4)
    assert rates == [(i, 0.08) for i in range(1, 11)] + [(i, 0.02) for i in range(9, 17)]
    assert scheduler.base_lrs == [0.02]
    assert "back to" in caplog.text
    assert "00000008, with the learning rates × 0.25 (1 of 2 times)" in caplog.text
    assert not [path for path in saved_in(tmp_path / "checkpoints") if path.name == "00000010"]


def test_going_back_ends(tmp_path):
    trainer, _ = trainer_of([Checkpoints()], run_dir=tmp_path, nonfinite="restore")
    with pytest.raises(NonFiniteError, match=r"update 2, .*; the run went back to a checkpoint 3 times already"):
        trainer.run([GOOD[0], BAD])
    assert trainer.optimizers["optimizer"].param_groups[0]["lr"] == pytest.approx(0.01 / 8)


def test_going_back_needs_a_folder():
    with pytest.raises(ConfigurationError, match="give run_dir="):
        trainer_of(nonfinite="restore")


@pytest.mark.parametrize("wrong", [{"learning_rate": 0}, {"learning_rate": 2.0}, {"times": 0}])
def test_a_policy_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigurationError):
        Restore(**wrong)


def test_a_word_that_is_no_policy_is_refused():
    with pytest.raises(ConfigurationError, match="nonfinite='stop': give"):
        trainer_of(nonfinite="stop")


def test_ignoring():
    trainer, numbers = trainer_of(nonfinite="ignore")
    trainer.run([*GOOD, BAD])
    assert len(numbers) == 5
    assert not trainer.model[0].weight.isfinite().all()


def test_an_optimizer_that_evaluates_repeatedly_is_looked_at_after_its_step():
    trainer, _ = trainer_of(optimizer=torch.optim.LBFGS)
    with pytest.raises(NonFiniteError, match=r"the loss is nan.* ClipNorm, or nonfinite='restore'$"):
        trainer.run([GOOD[0], BAD])
    with pytest.raises(ConfigurationError, match="LBFGS"):
        trainer_of(optimizer=torch.optim.LBFGS, nonfinite="skip")


def test_on_another_device_the_update_is_noted_and_told_later(monkeypatch):
    trainer, numbers = trainer_of()
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda self: False))
    with pytest.raises(NonFiniteError, match="update 2, epoch 1: the loss is not finite"):
        trainer.run([GOOD[0], BAD, *GOOD[:2]])
    assert len(numbers) == 4
    monkeypatch.undo()
    healthy, _ = trainer_of()
    trainer.model.load_state_dict(healthy.model.state_dict())
    trainer.optimizers["optimizer"].state.clear()
    trainer.run(GOOD, max_epochs=2)  # told once


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("value", [0.0, -0.0, 1e30, math.inf, -math.inf, math.nan])
def test_the_flag_is_what_isfinite_says(dtype, value):
    tensors = [
        torch.zeros(3, dtype=dtype),
        torch.zeros(0, dtype=dtype),
        torch.ones(2, 2, dtype=dtype).T,
        torch.zeros(()),
    ]
    tensors[2][1, 0] = value
    before = [tensor.clone() for tensor in tensors]
    finite = all(bool(tensor.isfinite().all()) for tensor in tensors)
    assert bool(nonfinite_flag(tensors, torch.zeros(()))) is not finite
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(tensors, before, strict=True))


def test_the_flag_reads_sparse_gradients():
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[0, 0]]), torch.tensor([[1.0], [math.inf]]), (3, 1), check_invariants=True
    )
    assert nonfinite_flag([sparse], torch.zeros(())) == 1


@pytest.mark.parametrize("last", [0.5, math.nan, math.inf])
def test_gradients_of_any_kind_are_asked_at_once_and_stay(last):
    gradients = [torch.ones(1).expand(3, 3), torch.ones(3, dtype=torch.bfloat16), torch.tensor([1.0, last]).double()]
    before = [gradient.clone() for gradient in gradients]
    assert bool(nonfinite_flag(gradients, torch.zeros(()))) is not math.isfinite(last)
    for gradient, one in zip(gradients, before, strict=True):
        torch.testing.assert_close(gradient, one, rtol=0, atol=0, equal_nan=True)
