"""What cannot work is refused, by name, with the mend."""

import pytest
import torch
import weightsmith_plugins as w
from ignite.metrics import Accuracy, Loss
from torch import nn
from weightsmith import (
    ConfigurationError,
    Plugin,
    PluginContractError,
    PluginDefinitionError,
    SelectionError,
    Site,
    Trainer,
    UnsupportedWeightError,
    WeightEditor,
    WeightEvents,
)
from weightsmith_plugins import L2, FakeQuantize, Grid, MaxNorm


class Curious(Plugin):
    def subscriptions(self, trainer):
        yield "no such event", print


def sgd(*models):
    return torch.optim.SGD([p for model in models for p in model.parameters()], lr=0.1)


def two(step):
    models = {"one": nn.Linear(3, 1), "two": nn.Linear(3, 1)}
    return Trainer(models, {name: sgd(model) for name, model in models.items()}, step=step)


def one(**options):
    model = nn.Linear(3, 1)
    return Trainer(model, sgd(model), nn.MSELoss(), **options)


def loss_of(trainer, name="one"):
    return trainer.models[name](torch.ones(2, 3)).square().mean()


@pytest.mark.parametrize(
    "event",
    [
        event
        for event in WeightEvents
        if event.name not in ("INITIALIZING", "MEASURED", "PLUGIN_STARTED", "PLUGIN_COMPLETED")
    ],
)
def test_an_update_inside_an_update_is_refused_and_does_no_harm(event):
    def step(trainer, batch):
        trainer.update(loss_of(trainer), "one")

    trainer, refused = two(step), []

    def nested(engine):
        if engine.state.optimizer is None:
            return  # the start
        with pytest.raises(ConfigurationError, match="inside the update of optimizer 'one'"):
            engine.update(loss_of(engine, "two"), "two")
        refused.append(engine.state.update)

    trainer.add_event_handler(event, nested)
    trainer.run([None] * 3, max_epochs=1)
    assert refused == [1, 2, 3]
    assert trainer.state.updates == {"one": 3, "two": 0}


@pytest.mark.parametrize(
    ("name", "message"),
    [("tow", r"no optimizer 'tow'.*'one', 'two'"), (None, r"which optimizer.*'one', 'two'")],
)
def test_update_says_which_optimizers_there_are(name, message):
    trainer = two(lambda trainer, batch: trainer.update(loss_of(trainer), name))
    with pytest.raises(ConfigurationError, match=message):
        trainer.run([None], max_epochs=1)
    assert trainer.state.updates == {"one": 0, "two": 0}


MODEL = nn.Linear(3, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "half"}, "'half'.*'float32', 'bfloat16', 'float16'"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"accumulate": -2}, "accumulate=-2"),
        ({"accumulate": 1.5}, r"accumulate=1\.5"),
        ({"loss_fn": None}, "loss_fn"),
        ({"model": {"one": MODEL, "two": nn.Linear(3, 1)}}, "step="),
        ({"optimizer": {"a": sgd(MODEL), "b": sgd(nn.Linear(3, 1))}}, "step="),
        ({"model": {}}, "at least one model"),
        ({"optimizer": {}}, "at least one model and one optimizer"),
    ],
    ids=str,
)
def test_a_trainer_that_could_not_work_is_refused_when_made(arguments, message):
    wanted = {"model": MODEL, "optimizer": sgd(MODEL), "loss_fn": nn.MSELoss(), **arguments}
    with pytest.raises(ConfigurationError, match=message):
        Trainer(**wanted)


def test_a_weight_in_two_optimizers_is_refused_by_its_name():
    with pytest.raises(ConfigurationError, match="weight"):
        Trainer(MODEL, {"a": sgd(MODEL), "b": sgd(MODEL)}, step=print)


def test_subscribing_to_no_event_is_refused_and_nothing_is_attached():
    trainer = Trainer(MODEL, sgd(MODEL), nn.MSELoss())
    with pytest.raises(ConfigurationError, match=r"Curious\(\).*no such event"):
        trainer.attach(Curious())
    assert trainer.plugins == ()


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: MaxNorm(limti=1.0), "MaxNorm has no field 'limti': did you mean 'limit'"),
        (lambda: MaxNorm(10**400), r"MaxNorm.limit: its magnitude is beyond 1.8e\+308, the largest it can have"),
        (lambda: w.Clamp(low=-(10**400)), r"Clamp.low: its magnitude is beyond 1.8e\+308"),
        (lambda: L2(0.1, every=2**63), r"L2.every: its magnitude is beyond 9.2e\+18, the largest it can have"),
        (lambda: Grid(10**400), "Grid.bits: its magnitude is beyond"),
        (lambda: Grid(65), r"Grid\(bits=65\): bits must be from 2 to 64"),
        (lambda: FakeQuantize(2**40), "bits must be from 2 to 64"),
        (lambda: MaxNorm("3"), "MaxNorm.limit: '3' is a str, where the field takes float"),
        (lambda: L2(None), "L2.strength: None is a NoneType"),
        (lambda: one(plugins=[MaxNorm]), r"MaxNorm is a class: attach a plugin made of it, MaxNorm\(…\)"),
        (lambda: one().detach(L2(0.1)), r"L2\(strength=0.1\) is not attached; attached is nothing"),
        (lambda: one().run([torch.ones(2)]), r"not a Tensor, in training: give the Trainer step="),
    ],
)
def test_common_mistakes_are_answered_with_the_mend(attempt, message):
    with pytest.raises(ConfigurationError, match=message):
        attempt()


def test_an_optimizer_that_is_never_updated_is_named(caplog):
    trainer = two(lambda trainer, batch: trainer.update(loss_of(trainer), "one"))
    trainer.run([None], max_epochs=1)
    assert "optimizers not updated in this run: 'two'. Does" in caplog.text


def test_means_without_an_average_are_refused_by_the_kind():
    trainer = one()
    with pytest.raises(ConfigurationError, match="no plugin of the kind Average is attached"), trainer.averaged():
        pass


def test_a_validation_of_means_without_an_average_is_refused_at_once():
    with pytest.raises(ConfigurationError, match="no plugin of the kind Average is attached"):
        one().validate_on([], {}, averaged=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.Linear, sgd(nn.Linear(1, 1))), "model= takes a torch Module, or several by name, not the class Linear"),
        ((nn.Linear(1, 1), "adam"), "optimizer= takes a torch Optimizer, or several by name, not a str"),
        ((nn.Linear(1, 1), nn.MSELoss()), "optimizer= takes a torch Optimizer, .* not a MSELoss"),
        ((nn.Linear(1, 1), sgd(nn.Linear(1, 1)), nn.MSELoss), r"loss_fn=MSELoss is a class: give .* MSELoss\(\)"),
    ],
)
def test_arguments_of_another_type_are_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Trainer(*arguments)


def test_one_plugin_may_stand_alone_and_twice_is_told(caplog):
    trainer = one(plugins=L2(0.1))
    assert trainer.plugins == (L2(0.1),)
    trainer.attach(L2(0.1))
    assert "attached twice, it acts twice" in caplog.text


@pytest.mark.parametrize("function", [w.to_int8, w.finalise, w.sparsity_report])
def test_functions_of_a_trainer_name_themselves(function):
    with pytest.raises(ConfigurationError, match=f"{function.__name__} takes the Trainer, not a Linear"):
        function(nn.Linear(1, 1))


def test_metrics_are_a_dict():
    with pytest.raises(ConfigurationError, match=r"metrics takes name to metric, such as {'accuracy'"):
        one().evaluate([], Accuracy())


def test_a_metric_that_is_a_class_is_named():
    with pytest.raises(ConfigurationError, match=r"the metric 'accuracy' is <class .*: give an Ignite metric"):
        one().evaluate([], {"accuracy": Accuracy})


@pytest.mark.parametrize("data", [[torch.ones(2, 3)], [(torch.ones(2, 3),)], [{"x": 1, "y": 2}]])
def test_the_default_evaluation_takes_pairs(data):
    with pytest.raises(ConfigurationError, match=r"not a (Tensor|tuple of 1|dict), in evaluation: give evaluate"):
        one().evaluate(data, {"loss": Loss(nn.MSELoss())})


SQUARE, MATRIX, GROUPS = "needed is a square matrix", "needed are two axes", "that 4 divides"


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (w.Symmetric(), SQUARE),
        (w.SkewSymmetric(), SQUARE),
        (w.PositiveDefinite(), SQUARE),
        (w.LowerTriangular(where="2"), MATRIX),
        (w.NofM(), GROUPS),
        (w.MagnitudePruning(0.5, "2:4"), GROUPS),
        (w.Intersection(w.NonNegative(), w.Symmetric()), SQUARE),
        (w.Orthogonal(where=nn.Conv2d), MATRIX),
        (w.XavierNormal(where=nn.Conv2d), MATRIX),
        (w.Orthogonal(gates=2), "its rows are not 2 equal gates"),
        (w.Identity(), "Dirac is the identity for convolutions"),
        (w.Dirac(), "needed is a convolution"),
        (w.DeltaOrthogonal(), "odd kernel sizes"),
        (w.Sparse(0.5), MATRIX),
        (w.Values([[1.0]]), r"the values have \(1, 1\)"),
        (w.WeightNorm(where="2"), MATRIX),
        (w.LowRankAdapter(4), "its rank is at most 3"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_when_the_plugin_is_attached(plugin, message):
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Conv2d(3, 3, 2))
    trainer = Trainer(model, sgd(model), nn.MSELoss())
    with pytest.raises(UnsupportedWeightError, match=rf"{type(plugin).__name__}.*weight '.*' has shape .*{message}"):
        trainer.attach(plugin)
    assert trainer.plugins == ()


class Forgetful(WeightEditor):
    """Asks for what its init did not return."""

    def init(self, weight, site):
        return {"mean": weight}

    def edit(self, weight, gradient, site):
        return site.state["maen"]


class Unnamed(WeightEditor):
    """Has an init that returns no dict."""

    def init(self, weight, site):
        return weight

    def edit(self, weight, gradient, site):
        return weight


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (Forgetful(), "site.state has no 'maen', for init did not return it: it remembers mean"),
        (Unnamed(), "init returned tensor.*: return a dict of name to tensor"),
    ],
)
def test_a_plugin_that_misuses_its_memory_is_told(plugin, message):
    trainer = one(plugins=[plugin])
    with pytest.raises(PluginContractError, match=message) as caught:
        trainer.run([(torch.ones(2, 3), torch.ones(2, 1))])
    assert any(type(plugin).__name__ in note for note in caught.value.__notes__)


@pytest.mark.parametrize(("after", "before"), [(5, 5), (6, 5), ("3 epochs", "3 epochs"), ("9 updates", 3)])
def test_limits_between_which_nothing_lies_are_refused(after, before):
    if type(after) is not type(before):
        assert L2(0.1, after=after, before=before).before == before  # each counts something of its own
        return
    with pytest.raises(ConfigurationError, match=r"L2\.before: .*it would never act"):
        L2(0.1, after=after, before=before)


def test_a_plugin_with_an_init_of_its_own_is_refused():
    with pytest.raises(PluginDefinitionError, match=r"Own defines __init__: write its fields as annotated attributes"):

        class Own(WeightEditor):
            def __init__(self, rate):
                self.rate = rate

            def edit(self, weight, gradient, site):
                return weight


def test_a_type_that_matches_nothing_is_answered_with_those_that_are_there():
    with pytest.raises(SelectionError, match="where='@Conv2d' matches no weight; there are @Linear"):
        one(plugins=[L2(0.1, where=nn.Conv2d)])


def test_a_loss_that_is_no_single_number_is_refused():
    model = nn.Linear(3, 1)
    trainer = Trainer(model, sgd(model), nn.MSELoss(reduction="none"))
    with pytest.raises(ConfigurationError, match=r"has shape \(2, 1\), and must be one number"):
        trainer.run([(torch.ones(2, 3), torch.ones(2, 1))])


def test_a_device_that_is_not_there_is_refused():
    for device in ("abacus", "cuda:99"):
        with pytest.raises(ConfigurationError, match=f"device '{device}' cannot be used here"):
            one(device=device)


@pytest.mark.parametrize("step", [lambda: None, lambda batch: None, lambda trainer, batch, more: None])
def test_a_step_that_takes_something_else_is_refused(step):
    with pytest.raises(ValueError, match=r"takes parameters .* but will be called with"):
        one(step=step)


@pytest.mark.parametrize("count", [1, 69, 70])
def test_whole_numbers_that_only_a_float_has_room_for_bound_as_any_other(count):
    weights = [torch.full((4, 4), 2.0) for _ in range(count)]
    plugin = w.Clamp(-(10**30), 10**30)
    plugin.project_all_(weights, [Site.alone(weight) for weight in weights])
    assert all((weight == 2).all() for weight in weights)
    assert isinstance(plugin.low, float)
    assert plugin == w.Clamp(-1e30, 1e30)
    assert isinstance(w.Clamp(-1, 1).low, int)
