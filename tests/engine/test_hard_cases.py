"""Cases that are easy to get wrong: half precision, infinities, several forwards in a step, what changes in mid-run."""

import functools

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Accuracy, ConfusionMatrix
from torch import nn
from weightsmith import (
    ConfigurationError,
    Constraint,
    Penalty,
    Plugin,
    PluginContractError,
    PluginDefinitionError,
    Probe,
    Trainer,
    WeightEditor,
    linear,
)
from weightsmith_plugins import (
    EMA,
    L2,
    Clamp,
    ClipNorm,
    Decay,
    Losses,
    MaxNorm,
    NonNegative,
    Orthogonal,
    Perturb,
    UnitNorm,
    WeightHistograms,
)


def one_weight(value=2.0, **options):
    """A trainer of one weight w, whose loss is given by the step's batch: w · batch."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(value)
    optimizer = options.pop("optimizer", torch.optim.SGD)(model.parameters(), lr=options.pop("lr", 0.1))
    step = options.pop("step", lambda trainer, batch: trainer.update((model.weight * batch).sum()))
    return Trainer(model, optimizer, step=step, **options), model


# ---------------------------------------------------------------- half precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_forward_of_a_step_sees_the_weights_as_they_are(precision):
    losses = []

    def step(trainer, batch):
        for _ in range(3):
            loss = trainer.model(batch).sum()
            losses.append(loss.item())
            trainer.update(loss)

    trainer, _ = one_weight(2.0, lr=0.5, step=step, precision=precision)
    trainer.run([torch.ones(1, 1)])
    assert losses == [2.0, 1.5, 1.0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_lbfgs_sees_the_weights_that_it_has_moved(precision):
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=10)

    def loss_fn(outputs, targets):
        return (outputs.float() - targets).square().sum()

    trainer = Trainer(model, optimizer, loss_fn, precision=precision)
    trainer.run([(torch.ones(1, 1), torch.full((1, 1), 0.5))])
    assert model.weight.item() == pytest.approx(0.5, abs=1e-2)


@pytest.mark.parametrize(
    ("constraint", "weight", "wanted"),
    [
        (NonNegative(), [1.0, -0.1], [1.0, 0.0]),
        (NonNegative(), [1000.0, -1e-3], [1000.0, 0.0]),
        (Clamp(-1.0, 1.0), [float("inf"), 100.0], [1.0, 1.0]),
        (Clamp(-1.0, 1.0), [-float("inf"), 0.5], [-1.0, 0.5]),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_constraint_constrains_beside_large_and_infinite_values(constraint, weight, wanted, dtype):
    model = nn.Linear(2, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weight]))
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.0), step=lambda t, b: None, plugins=[constraint])
    assert trainer.violations()[constraint, "weight"] > 0
    trainer.run([0])
    assert model.weight.tolist() == [wanted]
    assert trainer.violations()[constraint, "weight"] == 0


def test_bfloat16_norms_are_bounded_to_within_rounding():
    torch.manual_seed(0)
    weight = torch.randn(50, 40).bfloat16()
    model = nn.Linear(40, 50, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        model.weight.copy_(weight)
    trainer = Trainer(
        model, torch.optim.SGD(model.parameters(), lr=0.0), step=lambda t, b: None, plugins=[MaxNorm(1.0)]
    )
    trainer.run([0])
    assert model.weight.double().norm(dim=1).max() <= 1 + torch.finfo(torch.bfloat16).eps


def test_clipping_half_precision_gradients_by_their_norm_in_float32():
    gradient = torch.full((40_000,), 400.0, dtype=torch.float16)
    clipped = ClipNorm(1.0)(gradient, torch.zeros_like(gradient))
    assert clipped.double().norm().item() == pytest.approx(1.0, rel=1e-2)


def test_float64_orthogonal_is_orthogonal_to_float64():
    drawn = Orthogonal()(torch.empty(20, 30, dtype=torch.float64))
    assert torch.allclose(drawn @ drawn.T, torch.eye(20, dtype=torch.float64), atol=1e-13)


@pytest.mark.parametrize("scale", [1e20, 1e30])
def test_max_norm_of_huge_weights_is_on_the_sphere(scale):
    projected = MaxNorm(1.0)(torch.tensor([[3.0, 4.0]]) * scale)
    assert torch.allclose(projected, torch.tensor([[0.6, 0.8]]))


def test_float16_weights_are_refused_by_name_under_a_scaler():
    model = nn.Linear(2, 2).half()
    with pytest.raises(ConfigurationError, match="'optimizer' holds float16 weights"):
        Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), precision="float16")


def test_a_float16_update_that_reaches_none_of_its_weights_is_an_update_without_gradients():
    model = nn.ModuleDict({"used": nn.Linear(1, 1, bias=False), "unused": nn.Linear(1, 1, bias=False)})
    optimizers = {name: torch.optim.SGD(part.parameters(), lr=0.1) for name, part in model.items()}

    def step(trainer, batch):
        trainer.update(model["used"].weight.sum(), optimizer="unused")

    trainer = Trainer(model, optimizers, step=step, precision="float16")
    before = model["unused"].weight.item()
    trainer.run([0, 0])
    assert model["unused"].weight.item() == before
    assert trainer.state.updates == {"used": 0, "unused": 2}


# ---------------------------------------------------------------- losses that train nothing


def test_a_loss_without_a_gradient_is_refused_with_the_optimizers_name():
    trainer, _ = one_weight(step=lambda trainer, batch: trainer.update(torch.tensor(1.0)))
    with pytest.raises(ConfigurationError, match="'optimizer' has no gradient"):
        trainer.run([0])


def test_an_optimizer_whose_weights_are_all_frozen_is_named():
    model = nn.ModuleDict({"free": nn.Linear(1, 1), "frozen": nn.Linear(1, 1)})
    model["frozen"].requires_grad_(False)
    optimizers = {name: torch.optim.SGD(part.parameters(), lr=0.1) for name, part in model.items()}
    trainer = Trainer(model, optimizers, step=lambda t, b: t.update(model["free"].weight.sum(), optimizer="frozen"))
    with pytest.raises(ConfigurationError, match="'frozen' holds no trainable weight"):
        trainer.run([0])


# ---------------------------------------------------------------- what changes in mid-run


def test_weights_unfrozen_later_stay_out_of_other_optimizers_windows():
    body, head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    body.requires_grad_(False)
    models = {"body": body, "head": head}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.0) for name, model in models.items()}
    seen = []

    def step(trainer, batch):
        trainer.update(head(body(batch)).sum(), optimizer="head")
        seen.append(body.weight.grad)

    trainer = Trainer(models, optimizers, step=step, accumulate=3)
    trainer.add_event_handler(Events.STARTED, lambda: body.requires_grad_(True) and None)
    trainer.run([torch.ones(1, 1)] * 3)
    assert seen == [None, None, None]


def test_a_weight_that_joins_the_optimizer_is_acted_on_from_the_next_epoch():
    model = nn.ModuleDict({"first": nn.Linear(1, 1, bias=False), "late": nn.Linear(1, 1, bias=False)})
    optimizer = torch.optim.SGD(model["first"].parameters(), lr=0.0)

    def step(trainer, batch):
        return trainer.update(sum(part.weight.sum() for part in model.values()))

    with torch.no_grad():
        model["late"].weight.fill_(1.0)
    trainer = Trainer(model, optimizer, step=step, plugins=[Decay(0.5)])
    join = functools.partial(optimizer.add_param_group, {"params": list(model["late"].parameters())})
    trainer.add_event_handler(Events.EPOCH_STARTED(once=2), lambda: join())
    trainer.run([0], max_epochs=4)
    # epoch 2 finds out after our look at the start of that epoch; epochs 3 and 4 decay
    assert model["late"].weight.item() == pytest.approx(0.25)


def test_a_scheduled_constraint_goes_on_where_the_saved_run_stopped():
    def make():
        return one_weight(0.5, lr=0.0, plugins=[Clamp(-1.0, linear(0.1, 1.0, over=10))])

    first, _ = make()
    first.add_event_handler(Events.STARTED, lambda: None)
    first.run([torch.ones(1, 1)] * 9)
    second, model = make()
    with torch.no_grad():
        model.weight.fill_(0.85)
    second.load_state_dict(first.state_dict())
    second.run([torch.ones(1, 1)] * 9, max_epochs=2)
    assert model.weight.item() == pytest.approx(0.85)


def test_a_draw_of_an_update_that_is_repeated_is_the_same_draw():
    def run(fail):
        failures = [True] if fail else []

        class Fragile(WeightEditor):
            def edit(self, weight, gradient, site):
                if failures:
                    failures.pop()
                    raise RuntimeError("once")
                return weight

        trainer, model = one_weight(0.0, lr=0.0, seed=3)
        trainer.attach(Perturb(1.0, at="GRADIENTS_READY"))
        trainer.add_event_handler("GRADIENTS_READY", lambda: Fragile()(torch.zeros(1)) and None)
        if fail:
            with pytest.raises(RuntimeError, match="once"):
                trainer.run([torch.ones(1, 1)])
            with torch.no_grad():
                model.weight.zero_()
            trainer.state.max_epochs = None
        trainer.run([torch.ones(1, 1)])
        return model.weight.item()

    assert run(fail=True) == run(fail=False)


def test_a_schedule_over_a_run_of_unknown_length_is_refused_before_the_first_batch():
    seen = []
    trainer, _ = one_weight(step=lambda trainer, batch: seen.append(batch), plugins=[Decay(linear(0.1, 0.0))])
    with pytest.raises(ConfigurationError, match="needs the length of the run"):
        trainer.run(iter([1, 2, 3]), max_epochs=2)
    assert seen == []


def test_a_forward_constraint_takes_a_schedule_over_the_run():
    trainer, model = one_weight(5.0, lr=0.0, plugins=[Clamp(-1.0, linear(0.0, 4.0), mode="forward")])
    assert model.weight.item() == 0.0
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(model.weight.item()))
    trainer.run([torch.ones(1, 1)] * 4)
    assert seen == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(("after", "epochs"), [("4 updates", [2, 3, 4]), (2, [3, 4]), ("3 epochs", [4])])
def test_a_bound_in_updates_means_updates_on_whatever_event(after, epochs):
    trainer, _ = one_weight(plugins=[WeightHistograms(after=after)])
    seen = []
    trainer.add_event_handler("MEASURED", lambda engine: seen.append(engine.state.measurements.step))
    trainer.run([torch.ones(1, 1)] * 3, max_epochs=4)
    assert seen == epochs


# ---------------------------------------------------------------- penalties, averages, measurements


@pytest.mark.parametrize("evaluations", [1, 5])
def test_a_proximal_penalty_acts_once_a_step_of_lbfgs(evaluations):
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-9, max_iter=evaluations, tolerance_change=0)
    trainer = Trainer(model, optimizer, lambda outputs, targets: outputs.sum(), plugins=[L2(1e8, mode="proximal")])
    trainer.run([(torch.ones(1, 1), torch.ones(1, 1))])
    assert model.weight.item() == pytest.approx(1 / 1.2, rel=1e-4)


def test_equal_penalties_count_twice_in_cost_and_in_what_a_closure_returns():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-9, max_iter=1)
    trainer = Trainer(model, optimizer, lambda o, t: 0 * o.sum(), plugins=[L2(1.0), L2(1.0)])
    (cost,) = trainer.penalty_costs().values()
    assert cost.item() == 8.0
    seen = []
    inner = optimizer.step
    optimizer.step = lambda closure: inner(lambda: seen.append(value := closure()) or value)
    trainer.run([(torch.ones(1, 1), torch.ones(1, 1))])
    assert seen[0].item() == pytest.approx(8.0)
    assert model.weight.grad.item() == pytest.approx(8.0)


def test_an_average_that_has_seen_nothing_cannot_be_lent():
    trainer, _ = one_weight(plugins=[EMA(0.5, after=100)])
    trainer.run([torch.ones(1, 1)])
    with pytest.raises(ConfigurationError, match=r"no mean of 'weight' yet"), trainer.averaged():
        pass


def test_a_lent_average_stays_in_a_set_that_is_not_convex():
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        step=lambda t, slope: t.update((model.weight * slope).sum()),
        plugins=[UnitNorm(), EMA(0.5)],
    )
    trainer.run([torch.randn(2, 3) for _ in range(6)])
    live = model.weight.detach().clone()
    with trainer.averaged():
        assert torch.allclose(model.weight.norm(dim=1), torch.ones(2), atol=1e-6)
        assert not torch.equal(model.weight, live)
    assert torch.equal(model.weight, live)


def test_a_metric_that_is_no_number_is_kept_but_not_published():
    model = nn.Linear(2, 3)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    data = [(torch.randn(6, 2), torch.arange(6) % 3)]
    published = []
    trainer.add_event_handler("MEASURED", lambda engine: published.extend(engine.state.measurements.values))
    trainer.validate_on(data, {"confusion": ConfusionMatrix(3), "accuracy": Accuracy()})
    trainer.run(data)
    assert published == ["metrics/accuracy"]
    assert trainer.state.metrics["confusion"].shape == (3, 3)


def test_the_mean_loss_forgets_a_run_that_failed():
    def step(trainer, batch):
        trainer.update((trainer.model.weight * batch).sum() * 0 + batch.sum())
        if batch.item() > 100:
            raise RuntimeError("too large")

    trainer, _ = one_weight(step=step, plugins=[Losses()])
    with pytest.raises(RuntimeError, match="too large"):
        trainer.run([torch.full((1, 1), 400.0)])
    trainer.state.max_epochs = None
    trainer.run([torch.full((1, 1), 1.0)])
    assert trainer.state.measurements.values["loss/optimizer"] == 1.0


# ---------------------------------------------------------------- what authors may write


def test_an_unannotated_override_of_a_field_is_refused_with_the_mend():
    with pytest.raises(PluginDefinitionError, match=r"annotate it, `decay: float = 0\.5`"):

        class Slow(EMA):
            decay = 0.5


def test_helpers_properties_and_cached_properties_are_the_authors_business():
    class Tidy(Constraint):
        bound: float = 1.0

        @functools.cached_property
        def doubled(self):
            return 2 * self.bound

        @property
        def half(self):
            return self.bound / 2

        @staticmethod
        def unit(weight):
            return weight.sign()

        def limit(self):
            return self.doubled

        def fact(self):
            return self.half

        def project(self, weight, site):
            return weight.clamp(-self.limit(), self.fact())

    assert Tidy(3.0)(torch.tensor([[-9.0, 9.0]])).tolist() == [[-6.0, 1.5]]


def test_paths_and_numpy_numbers_are_taken_as_texts_and_numbers(tmp_path):
    class Noted(Plugin):
        path: str
        share: float

        def subscriptions(self, trainer):
            yield from ()

    number = torch.tensor(0.25, dtype=torch.float64).numpy()[()]
    noted = Noted(tmp_path, number)
    assert noted == Noted(str(tmp_path), 0.25)
    assert type(noted.share) is float


def test_arguments_in_another_order_are_refused_when_the_class_is_made():
    with pytest.raises(PluginDefinitionError, match=r"write `def edit\(self, weight, gradient, site\)`"):

        class Swapped(WeightEditor):
            def edit(self, gradient, weight, site):
                return weight


@pytest.mark.parametrize("name", ["order", "event", "acts_on_frozen"])
def test_a_field_may_not_take_a_name_of_the_engines(name):
    def project(self, weight, site):
        return weight

    with pytest.raises(PluginDefinitionError, match=f"{name} is a name that the engine uses for itself"):
        type(Constraint)("Taken", (Constraint,), {"__annotations__": {name: int}, name: 1, "project": project})


def test_a_step_that_never_updates_is_warned_of(caplog):
    trainer, _ = one_weight(step=lambda trainer, batch: None, plugins=[L2(0.1)])
    trainer.run([0])
    assert "does the step call trainer.update(loss)?" in caplog.text


def test_the_plan_says_what_happens_to_frozen_weights():
    model = nn.Linear(2, 2).requires_grad_(False)
    plugins = [Clamp(-1, 1), L2(0.1)]
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), plugins=plugins)
    notes = {row.plugin: row.note for row in trainer.plan().rows}
    assert notes["Clamp(low=-1, high=1)"] == "frozen, but acted on all the same: weight"
    assert notes["L2(strength=0.1)"] == "frozen, so left alone: weight"


def test_a_cost_that_is_no_number_and_a_measurement_that_is_no_dict_are_refused_by_name():
    class Vector(Penalty):
        def cost(self, weight, site):
            return weight.square()

    class Bare(Probe):
        def measure(self, weight, site):
            return weight.sum()

    for plugin, message in (
        (Vector(), "Vector.cost returned .* return a 0-d tensor"),
        (Bare(), "return a dict of group"),
    ):
        trainer, _ = one_weight(plugins=[plugin])
        with pytest.raises(PluginContractError, match=message):
            trainer.run([torch.ones(1, 1)])
